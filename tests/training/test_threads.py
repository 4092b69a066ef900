"""Shares of a window on threads of their own."""

import threading

import torch

from mtl.training.threads import computing, flushes


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
