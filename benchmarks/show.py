"""A result as tables and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mtl.display import table

PRECISIONS = ("fp32", "bf16", "int8")
COLORS = {"fp32": "C0", "bf16": "C2", "int8": "C1"}


def rate(part: dict[str, Any], engine: str) -> float:
    """Texts per second."""
    return float(part["texts"] / statistics.median(part["engines"][engine]["seconds"]))


def of_precision(part: dict[str, Any], precision: str) -> list[str]:
    """The engines of a number format, ours first, then the fastest."""
    names = [name for name, engine in part["engines"].items() if engine["precision"] == precision]
    return sorted(names, key=lambda name: (not name.startswith("mtl"), -rate(part, name)))


def ours(precision: str) -> str:
    return "mtl" if precision == "fp32" else f"mtl {precision}"


def tables(result: dict[str, Any]) -> str:
    """Every part of a result as text."""
    found = []
    for workload, part in result["parts"].items():
        one = "latency_ms" in part["engines"]["mtl"]
        size = f"{part['texts']} texts, {part['tokens']} tokens, median {part['median']:g}"
        title = f"{result['model']}, {workload}: {size}"
        found.append(f"{title}\n{table(alone_rows(part) if one else throughput_rows(part))}")
        if not one:
            found += [table(rows)] if len(rows := searched_rows(part)) > 1 else []
            found.append(f"sgemm limit {statistics.median(part['gflops_limit']):.0f} GFLOP/s")
    return "\n\n".join(found)


def throughput_rows(part: dict[str, Any]) -> list[list[object]]:
    limit = statistics.median(part["gflops_limit"])
    rows: list[list[object]] = [
        ["engine", "batch x streams", "texts/s", "tokens/s", "mtl is", "of sgemm", "max diff", "min cosine",
         "mean cosine", "peak MiB"]
    ]  # fmt: skip
    for precision in PRECISIONS:
        own = rate(part, ours(precision)) if ours(precision) in part["engines"] else None
        for name in of_precision(part, precision):
            engine = part["engines"][name]
            seconds = statistics.median(engine["seconds"])
            times = f"{own / rate(part, name):.2f} x" if own else ""
            share = f"{part['gflop'] / seconds / limit:.0%}" if precision == "fp32" else ""
            rows.append([
                name, setting(engine), f"{rate(part, name):.1f}", f"{part['tokens'] / seconds:.0f}", times, share,
                f"{engine['largest_difference']:.1e}", f"{engine['smallest_cosine']:.4f}",
                f"{engine['mean_cosine']:.5f}", f"{engine['peak_mib']:.0f}",
            ])  # fmt: skip
    return rows


def alone_rows(part: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = [["engine", "p50, ms", "p99, ms", "cold start, s", "peak MiB"]]
    for name, engine in part["engines"].items():
        p50, p99 = (f"{engine['latency_ms'][key]:.1f}" for key in ("p50", "p99"))
        rows.append([name, p50, p99, f"{statistics.median(engine['cold_start']):.2f}", f"{engine['peak_mib']:.0f}"])
    return rows


def searched_rows(part: dict[str, Any]) -> list[list[object]]:
    """What the search found: texts per second of a quarter of the texts, by batch and streams."""
    tried = {name: engine["tried"] for name, engine in part["engines"].items() if engine["tried"]}
    options = sorted({(t["streams"], t["batch"]) for found in tried.values() for t in found})
    rows: list[list[object]] = [["searched, texts/s", *(f"{batch} x {streams}" for streams, batch in options)]]
    for name, found in tried.items():
        rates = {(t["streams"], t["batch"]): f"{t['texts_per_second']:.1f}" for t in found}
        rows.append([name, *(rates.get(option, "") for option in options)])
    return rows


def setting(engine: dict[str, Any]) -> str:
    """Texts in a batch, and batches at once; empty where the engine sees to both itself."""
    if engine["batch"] is None:
        return ""
    return f"{engine['batch']} x {engine['streams'] or 1}"


def picture(result: dict[str, Any], path: Path) -> None:
    """Bars of texts per second, a plot per workload, engines of like number format side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = {w: part for w, part in result["parts"].items() if "gflops_limit" in part}
    if not parts:
        return
    figure, axes = pyplot.subplots(1, len(parts), figsize=(5.5 * len(parts), 4.5), layout="constrained", squeeze=False)
    for axis, (workload, part) in zip(axes[0], parts.items(), strict=True):
        names = [name for precision in PRECISIONS for name in of_precision(part, precision)]
        colors = [COLORS[part["engines"][name]["precision"]] for name in names]
        edges = ["black" if name.startswith("mtl") else "none" for name in names]
        bars = axis.barh(names, [rate(part, name) for name in names], color=colors, edgecolor=edges)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize="small")
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set(xlabel="texts per second", title=f"{workload}, median {part['median']:g} tokens")
    threads = next(iter(parts.values()))["threads"]
    figure.suptitle(f"{result['model']}, {threads} threads; blue fp32, green bf16, orange int8")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
