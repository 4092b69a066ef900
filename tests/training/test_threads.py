"""Shares of a window on threads of their own."""

import threading

import pytest
import torch

from mtl.training.threads import computing, division, flushes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tokens", "threads", "expected"),
    [(400, 2, 2), (400, 1, 1), (100, 2, 1), (400, 16, 6), (100_000, 64, 8), (0, 3, 1)],
)
def test_threads_are_divided_among_shares(tokens: int, threads: int, expected: int) -> None:
    assert division(tokens, threads, CPU) == expected
    assert division(tokens, threads, torch.device("meta")) == 1


def test_each_share_has_a_thread_that_computes_alone_and_takes_tiny_numbers_for_0() -> None:
    barrier = threading.Barrier(2, timeout=20)  # so that each share has its own thread

    def state(_: int) -> tuple[int, bool]:
        barrier.wait()
        return torch.get_num_threads(), flushes()

    before = torch.get_num_threads(), flushes()
    with computing(2) as mapped:
        assert list(mapped(state, range(2))) == [(1, True)] * 2
        assert (torch.get_num_threads(), flushes()) == (1, True)
    assert (torch.get_num_threads(), flushes()) == before
