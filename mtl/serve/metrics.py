"""Counters, gauges and histograms in Prometheus' text format 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

SECONDS = tuple(0.001 * 2**i for i in range(17))  # 1 ms to 65 s
SIZES = tuple(2.0**i for i in range(17))  # 1 to 65,536


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


class Metrics:
    """By name and labels; a name belongs to one kind of metric."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kinds: dict[str, str] = {}
        self.values: dict[str, dict[str, float]] = {}
        self.buckets: dict[str, dict[str, list[int]]] = {}
        self.bounds: dict[str, Sequence[float]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self.lock:
            self.kinds.setdefault(name, "counter")
            series, key = self.values.setdefault(name, {}), written(labels)
            series[key] = series.get(key, 0) + amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self.lock:
            self.kinds[name] = "gauge"
            self.values[name] = {"": value}

    def observe(self, name: str, value: float, bounds: Sequence[float] = SECONDS, **labels: str) -> None:
        """Count a value in a histogram."""
        with self.lock:
            self.kinds.setdefault(name, "histogram")
            self.bounds.setdefault(name, bounds)
            key = written(labels)
            counts = self.buckets.setdefault(name, {}).setdefault(key, [0] * (len(bounds) + 1))
            counts[bisect_left(bounds, value)] += 1
            sums = self.values.setdefault(name, {})
            sums[key] = sums.get(key, 0.0) + value

    def __str__(self) -> str:
        with self.lock:
            return "\n".join(self.lines()) + "\n"

    def lines(self) -> list[str]:
        """All metrics; the lock is held."""
        lines: list[str] = []
        for name, kind in self.kinds.items():
            lines.append(f"# TYPE {name} {kind}")
            if kind != "histogram":
                lines += [f"{name}{braced(key)} {number(value)}" for key, value in self.values[name].items()]
                continue
            for key, counts in self.buckets[name].items():
                total = 0
                for bound, count in zip((*self.bounds[name], float("inf")), counts, strict=True):
                    total += count
                    least = "+Inf" if bound == float("inf") else number(bound)
                    lines.append(f"{name}_bucket{braced(key, written({'le': least}))} {total}")
                lines.append(f"{name}_sum{braced(key)} {number(self.values[name][key])}")
                lines.append(f"{name}_count{braced(key)} {total}")
        return lines


def written(labels: dict[str, str]) -> str:
    """Labels as they stand between braces."""
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def braced(*labels: str) -> str:
    inner = ",".join(label for label in labels if label)
    return f"{{{inner}}}" if inner else ""
