"""Thread settings while a model computes: what it gets, and what it leaves behind, in this thread and in others."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from mtl import SentenceEncoder
from mtl.check import sample_texts
from mtl.kernels import threads

T = TypeVar("T")
FOUND = threads.setters is not None
MKL = torch.backends.mkl.is_available()


def numbers() -> tuple[int, int]:
    """The calling thread's: OpenMP's, and MKL's as torch reports it (1 where there is none)."""
    report = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return torch.get_num_threads(), int(report[1]) if report else 1


def in_a_new_thread(ask: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(params=["each by itself", "both by torch"])
def blas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """The BLAS's number where OpenMP's is the given one: in both ways to set them, the second of which is for builds
    where the first is not found."""
    if request.param == "both by torch":
        monkeypatch.setattr(threads, "setters", None)
        return lambda inside: inside if MKL else 1
    return lambda inside: 1


def test_the_settings_are_found_where_torch_has_them() -> None:
    assert FOUND or "backend: OpenMP" not in torch.__config__.parallel_info()


@pytest.mark.parametrize("inside", [1, 2, 3])
def test_a_caller_computes_with_its_threads_and_keeps_its_own(blas: Callable[[int], int], inside: int) -> None:
    before, others = numbers(), in_a_new_thread(numbers)
    with threads.computing_with(inside):
        assert numbers() == (inside, blas(inside))
    assert numbers() == before
    with pytest.raises(RuntimeError, match="in the middle"), threads.computing_with(inside):
        raise RuntimeError("in the middle")
    assert (numbers(), in_a_new_thread(numbers)) == (before, others)


def test_threads_side_by_side_compute_alone(blas: Callable[[int], int]) -> None:
    both = threading.Barrier(2, timeout=30)

    def found(_: int) -> tuple[int, int]:
        both.wait()
        return numbers()

    before, others = numbers(), in_a_new_thread(numbers)
    with threads.side_by_side(2) as pool:
        assert list(pool.map(found, range(2))) == [(1, blas(1))] * 2
    assert (numbers(), in_a_new_thread(numbers)) == (before, others)


@pytest.mark.skipif(not FOUND, reason="torch's own function sets what new threads begin with")
def test_other_threads_do_not_see_it() -> None:
    """One that is new begins as before, and a second caller has its own numbers, whoever leaves first."""
    entered, leave = threading.Event(), threading.Event()
    seen: list[tuple[int, int]] = []

    def first() -> None:
        seen.append(numbers())
        with threads.computing_with(3):
            entered.set()
            leave.wait(30)
            seen.append(numbers())
        seen.append(numbers())

    before = numbers()
    caller = threading.Thread(target=first)
    caller.start()
    entered.wait(30)
    assert in_a_new_thread(numbers) == before
    with threads.computing_with(2):
        assert numbers() == (2, 1)
        leave.set()
        caller.join()
        assert numbers() == (2, 1)
    assert numbers() == before
    assert seen == [before, (3, 1), before]


@pytest.mark.skipif(sys.platform != "linux" or not FOUND, reason="threads are counted in Linux's /proc")
def test_a_team_ends() -> None:
    """Else it is there for as long as the thread that made it, and slows all others down."""
    x = torch.arange(1_000_000.0)

    def running() -> set[str]:
        return {path.name for path in Path("/proc/self/task").iterdir()}

    def computed() -> tuple[int, set[str], bool]:
        with threads.computing_with(3):
            before = running()
            once = x * 2
            team = running() - before
            threads.end_team()
            end = time.monotonic() + 30
            while (left := running() & team) and time.monotonic() < end:
                time.sleep(0.01)
            return len(team), left, torch.equal(x * 2, once) and torch.get_num_threads() == 3

    team, left, goes_on = in_a_new_thread(computed)
    if team < 2:
        pytest.skip("OpenMP is kept from making threads here")
    assert not left
    assert goes_on


def test_one_text_beside_another_caller_has_the_same_bits() -> None:
    model = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    text, others = "three short words", sample_texts()
    alone = model.encode(text, threads=1)
    stop = threading.Event()

    def keep_encoding() -> None:
        while not stop.is_set():
            model.encode(others[3], threads=2)

    beside = threading.Thread(target=keep_encoding)
    beside.start()
    try:
        found = [model.encode(text, threads=threads) for threads in (1, 2, 3) * 20]
    finally:
        stop.set()
        beside.join()
    assert all(np.array_equal(vector, alone) for vector in found)
