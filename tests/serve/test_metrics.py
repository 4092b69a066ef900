"""Metrics that several threads write: the event loop and the worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from mtl.serve.metrics import SIZES, Metrics


def test_nothing_is_lost_between_threads() -> None:
    metrics = Metrics()

    def write(thread: int) -> None:
        for i in range(200):
            metrics.add("requests", method='"a"\n')
            metrics.observe(f"size_{thread}_{i}", i, SIZES)  # names come up while others are written out
            if i % 40 == 0:
                assert str(metrics).endswith("\n")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    lines = str(metrics).splitlines()
    assert r'requests{method="\"a\"\n"} 600' in lines
    assert 'size_2_100_bucket{le="64"} 0' in lines
    assert 'size_2_100_bucket{le="128"} 1' in lines
    assert "size_2_100_sum 100" in lines
