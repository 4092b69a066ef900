"""Reading ahead: in order, one item at a time, and never waited for."""

import threading
import time
from collections.abc import Iterator

import pytest

from mtl import SentenceEncoder
from mtl.encode.engine import prefetch
from mtl.errors import InputError


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mtl-prefetch"]


def test_one_item_ahead_in_order() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for i in range(20):
            read.append(i)
            yield i

    found = []
    for item in prefetch(source(), lambda i: i * i):
        found.append(item)
        assert len(read) <= len(found) + 1
    assert found == [i * i for i in range(20)]
    assert list(prefetch([], str)) == []


def test_an_error_comes_in_its_place() -> None:
    """After all that was read before it, whether the source raises or the step does."""

    def source() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("gone")

    items = prefetch(source(), str)
    assert (next(items), next(items)) == ("1", "2")
    with pytest.raises(OSError, match="gone"):
        next(items)
    items = prefetch([1, 0], lambda i: 1 // i)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)
    deadline = time.monotonic() + 10
    while readers() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not readers()


@pytest.mark.parametrize("way", ["break", "close", "raise", "forget"])
def test_a_source_that_blocks_holds_nobody_up(tiny: SentenceEncoder, way: str) -> None:
    gate, done = threading.Event(), threading.Event()

    def source() -> Iterator[str]:
        yield from ["a", "b"] * 4
        gate.wait(60)
        try:
            yield "never tokenized"
        finally:
            done.set()

    started = time.monotonic()
    stream = tiny.encode_stream(source(), window=4)
    try:
        for i, _ in enumerate(stream):
            if i == 1 and way == "break":
                break
            if i == 1 and way == "close":
                stream.close()
            if i == 1 and way == "raise":
                raise KeyError
            if i == 1 and way == "forget":
                break
    except KeyError:
        pass
    del stream
    assert time.monotonic() - started < 1
    gate.set()
    assert done.wait(10)  # the thread lets the source go, once it gives something


def test_a_step_under_way_is_waited_for() -> None:
    """In native code a thread must not outlive the interpreter; that takes no more than a window's time."""
    begun, ended = threading.Event(), []

    def step(item: int) -> int:
        if item:
            begun.set()
            time.sleep(0.1)
            ended.append(item)
        return item

    items = prefetch([0, 1, 2], step)
    next(items)
    begun.wait(10)
    items.close()
    assert ended == [1]


@pytest.mark.parametrize("threads", [10**6, 40000, 10**30])
def test_more_threads_than_a_machine_bears(tiny: SentenceEncoder, threads: int) -> None:
    with pytest.raises(InputError, match=r"threads is \d.*; expected at most \d+ on this machine"):
        tiny.encode("a", threads=threads)
