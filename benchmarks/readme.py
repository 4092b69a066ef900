"""Writes the tables and the sentences with numbers of README.md and benchmarks/README.md from the result files.

    python -m benchmarks.readme

README.md has one table, of the processor that was measured last; benchmarks/README.md has all. What stands between
the lines <!-- speed:begin --> and <!-- speed:end --> is replaced in both, and between those of "faults", "serving" and
"gpu" in the latter.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.show import PRECISIONS, of_precision, ours, rate

README = Path(__file__).parents[1] / "README.md"
ALL = Path(__file__).with_name("README.md")
LEFT_OUT = ("sentence-transformers bf16",)  # of the README's ten rows; all are in the longer page
MODELS = {"all-MiniLM-L6-v2": "MiniLM", "distilbert-shape": "DistilBERT shape", "all-mpnet-base-v2": "MPNet"}
SPEEDS = {"mixed-short": "short", "mixed-long": "long"}
ONE_TEXT = "one-text"
Result = dict[str, Any]


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is the header."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def spoken(items: list[str]) -> str:
    """a; a and b; a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def figure(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def order(results: list[Result]) -> list[str]:
    """All engines, by number format, ours first, then by speed in the first result."""
    parts = [part for result in results for w, part in result["parts"].items() if w in SPEEDS]
    names = [name for precision in PRECISIONS for part in parts for name in of_precision(part, precision)]
    return sorted(dict.fromkeys(names), key=lambda name: PRECISIONS.index(precision_of(parts, name)))


def precision_of(parts: list[Result], name: str) -> str:
    return next(part["engines"][name]["precision"] for part in parts if name in part["engines"])


def speed_table(results: list[Result], left_out: tuple[str, ...] = ()) -> str:
    """Texts per second of every engine, model and workload."""
    header, columns = [], []
    for result in results:
        for workload, label in SPEEDS.items():
            if workload in result["parts"]:
                header.append(f"{MODELS.get(result['model'], result['model'])}, {label}")
                columns.append(result["parts"][workload])
    rows = [["texts per second", *header]]
    for name in [name for name in order(results) if name not in left_out]:
        cells = [figure(rate(part, name)) if name in part["engines"] else "" for part in columns]
        rows.append([bold(name), *cells])
    return markdown(rows)


def bold(name: str) -> str:
    return f"**{name}**" if name.startswith("mtl") else name


def beside_table(result: Result) -> str:
    """What else there is to an engine, of one model: agreement with fp32, one text, cold start, memory."""
    parts = [part for w, part in result["parts"].items() if w in SPEEDS]
    alone = result["parts"].get(ONE_TEXT, {"engines": {}})["engines"]
    label = MODELS.get(result["model"], result["model"])
    rows = [[label, "smallest cosine to fp32", "mean cosine", "one text, ms: p50", "p99", "cold start, s", "peak MiB"]]
    for name in order([result]):
        found = [part["engines"][name] for part in parts if name in part["engines"]]
        latency = alone[name]["latency_ms"] if name in alone else None
        rows.append([
            bold(name), f"{min(f['smallest_cosine'] for f in found):.4f}", mean_cosine(found),
            figure(latency["p50"]) if latency else "", figure(latency["p99"]) if latency else "",
            f"{statistics.median(alone[name]['cold_start']):.2f}" if latency else "",
            f"{max(f['peak_mib'] for f in found):.0f}",
        ])  # fmt: skip
    return markdown(rows)


def mean_cosine(found: list[Result]) -> str:
    known = [engine["mean_cosine"] for engine in found if engine["mean_cosine"] is not None]
    return f"{min(known):.4f}" if known else ""


def compared(part: Result, precision: str) -> str:
    """How our speed compares with the fastest peer's, and with sentence-transformers'."""
    own = ours(precision)
    peers = [name for name in of_precision(part, precision) if not name.startswith("mtl")]
    if own not in part["engines"] or not peers:
        return ""
    named = [peers[0], *(name for name in peers[1:] if name.startswith("sentence-transformers"))]
    return spoken([f"{rate(part, own) / rate(part, name):.2f} times {name}" for name in named])


def sentences(result: Result) -> list[str]:
    """A line per number format, and one for a single text."""
    lines = []
    for precision in PRECISIONS:
        found = {label: compared(result["parts"][w], precision) for w, label in SPEEDS.items() if w in result["parts"]}
        told = [f"{ratios} on {label} texts" for label, ratios in found.items() if ratios]
        if told:
            lines.append(f"- {MODELS.get(result['model'], result['model'])}, {precision}: {'; '.join(told)}.")
    if ONE_TEXT in result["parts"]:
        lines.append(one_text_sentence(result))
    return lines


def one_text_sentence(result: Result) -> str:
    """How long one text takes, beside the fastest peer and sentence-transformers, in fp32."""
    engines = result["parts"][ONE_TEXT]["engines"]
    times = {name: engine["latency_ms"]["p50"] for name, engine in engines.items() if engine["precision"] == "fp32"}
    own = times.pop("mtl")
    named = sorted(times, key=times.__getitem__)[:1]
    named += [name for name in times if name == "sentence-transformers" and name not in named]
    told = f"; {spoken([f'{own / times[name]:.2f} times the time of {name}' for name in named])}" if named else ""
    return f"- {MODELS.get(result['model'], result['model'])}, one text alone: {figure(own)} ms{told}."


def training_sentence(result: Result) -> str:
    """Training beside Trainer."""
    rates = {key: statistics.median(values) for key, values in result["texts_per_second"].items()}
    accuracy = result["accuracy"]
    told = []
    for precision in PRECISIONS:
        mtl, trainer = f"mtl {precision}", f"Trainer {precision}"
        if mtl in rates:
            scores = f" (dev accuracy {accuracy[mtl]:.3f} and {accuracy[trainer]:.3f})" if mtl in accuracy else ""
            told.append(f"{rates[mtl] / rates[trainer]:.2f} times transformers' Trainer in {precision}{scores}")
    if "mtl bf16" in rates:
        told.append(f"in bf16 {rates['mtl bf16'] / rates['Trainer fp32']:.2f} times the Trainer in fp32")
    frozen, later = rates["mtl, frozen trunk"], rates["mtl, frozen trunk, later epochs"]
    theirs = rates["Trainer, frozen trunk"]
    told.append(f"with a frozen trunk {frozen / theirs:.2f} times, from the second epoch on {later / theirs:.0f} times")
    return f"- Training: {'; '.join(told)}."


def heading(result: Result) -> str:
    """What a model's figures were measured on, when, and what is to be known about them."""
    parts = list(result["parts"].values())
    machine = parts[0]["machine"]
    limits = [limit for part in parts for limit in part.get("gflops_limit", [])]
    family = "".join(f", family {f[0]} model {f[1]}" for f in [machine.get("family")] if f)
    taken = spoken(sorted({f"{part['machine']['date']} at {part['machine']['commit']}" for part in parts}))
    noted: dict[str, list[str]] = {}
    for workload, part in result["parts"].items():
        if "note" in part:
            noted.setdefault(part["note"], []).append({**SPEEDS, ONE_TEXT: "one text"}.get(workload, workload))
    notes = "".join(f" Note on {spoken(labels)}: {note}." for note, labels in noted.items())
    return (
        f"- {MODELS.get(result['model'], result['model'])}: {machine['cpu']}{family}, {parts[0]['threads']} threads, "
        f"{machine['instructions']}, {statistics.median(limits):.0f} GFLOP/s in fp32; medians of {parts[0]['rounds']} "
        f"rounds; taken {taken}.{notes}"
    )


def results_of(folder: Path) -> dict[str, Result]:
    """What was measured on one processor, by the file's name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def speeds(found: dict[str, Result]) -> list[Result]:
    """The results of engines beside each other, the models that are known first."""
    names = [name for name, result in found.items() if result.keys() == {"model", "parts"}]
    return [found[name] for name in sorted(names, key=lambda name: (name not in MODELS, name))]


def section(processor: str, found: dict[str, Result]) -> str:
    """All that is said of one processor."""
    results = speeds(found)
    headings = "\n".join(map(heading, results))
    lines = [line for result in results for line in sentences(result)]
    if "training" in found:
        lines.append(training_sentence(found["training"]))
    pictures = [f"![texts per second](results/{processor}/{r['model']}.png)" for r in results[:1]]
    return "\n\n".join([headings, speed_table(results), *map(beside_table, results), "\n".join(lines), *pictures])


def last_taken(found: dict[str, Result]) -> str:
    """The date of the latest of one processor's speeds."""
    parts = [part for result in speeds(found) for part in result["parts"].values()]
    return max((part["machine"]["date"] for part in parts), default="")


def latest(folder: Path) -> tuple[dict[str, dict[str, Result]], list[str]]:
    """All results by processor, and the processors' names: the latest first, by name among equals."""
    folders = {path.name: results_of(path) for path in {path.parent for path in folder.glob("*/*.json")}}
    found = {name: results for name, results in folders.items() if speeds(results)}  # not a GPU's
    return found, sorted(found, key=lambda name: (last_taken(found[name]), name), reverse=True)


def brief(folder: Path = RESULTS) -> str:
    """The README's part: of the latest processor one table, and a sentence for each number format and for training."""
    found, (name, *_) = latest(folder)
    results = speeds(found[name])
    lines = sentences(results[0])[:4]
    if "training" in found[name]:
        lines = [*lines[:3], training_sentence(found[name]["training"])]
    return "\n\n".join([heading(results[0]), speed_table(results, LEFT_OUT), "\n".join(lines)]) + "\n"


def render(folder: Path = RESULTS) -> str:
    """The longer page's part: the latest processor, and the others folded up."""
    found, latest_first = latest(folder)
    blocks = [f"**{name}**\n\n{section(name, found[name])}" for name in latest_first[:1]]
    blocks += [f"<details><summary>{name}</summary>\n\n{section(name, found[name])}\n\n</details>"
               for name in latest_first[1:]]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def fault_table(result: Result) -> str:
    """What was killed, how often, and what came of it."""
    columns = ["tried", "survived", "lost", "doubled"]
    rows = [[name, *(str(tally[column]) for column in columns)] for name, tally in result["tallies"].items()]
    return markdown([["killed", "moments tried", *columns[1:]], *rows])


def memory_sentence(result: Result) -> str:
    """What a million rows and minutes of calls do to memory."""
    told = []
    if "stream" in result:
        stream, corpus = result["stream"]["rows and MiB"], result["corpus"]["files done and peak MiB"]
        middle, last = stream[len(stream) // 2], stream[-1]
        told.append(f"{last[0]:,} rows through `encode_stream`: {middle[1]:.0f} MiB half way, {last[1]:.0f} at the end")
        told.append(f"as many through `embed_corpus`, in {result['corpus']['files']} files: at most {corpus[0][1]:.0f} "
                    f"MiB in the first, {corpus[-1][1]:.0f} in the last")  # fmt: skip
    if "soak" in result:
        soak = result["soak"]
        held = [mib for _, mib in soak["held, minute and MiB"]]
        told.append(f"{soak['calls']:,} calls of all kinds in {soak['minutes']:g} minutes: {min(held):.0f} to "
                    f"{max(held):.0f} MiB are held ({soak['held, MiB per hour']:+.0f} MiB an hour), beside what the "
                    f"allocator keeps (with it, {soak['resident, MiB per hour']:+.0f} MiB an hour)")  # fmt: skip
    return "; ".join(told) + "."


def faults(folder: Path = RESULTS) -> str:
    """The README's part on faults, of each processor that there are such results of."""
    blocks = []
    for processor in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (path := processor / "faults.json").exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            taken = spoken(sorted({tally["date"] for tally in result["tallies"].values()}))
            blocks += [f"{processor.name}, taken {taken}:", fault_table(result)]
        if (path := processor / "soak.json").exists():
            told = memory_sentence(json.loads(path.read_text(encoding="utf-8")))
            blocks.append(told if (processor / "faults.json").exists() else f"{processor.name}: {told}")
    return "\n\n".join(blocks) + "\n"


def serving_table(rounds: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Each server's requests a second, the middle one of its rounds, beside infinity's, and their 99th percentile."""
    rows = [["load", "server", "requests a second", "times infinity", "p99, ms"]]
    for load, servers in rounds.items():
        middle = {name: statistics.median(one["per second"] for one in found) for name, found in servers.items()}
        base = next((middle[name] for name in middle if name.startswith("infinity")), None)
        for name, found in servers.items():
            ratio = f"{middle[name] / base:.2f}" if base else ""
            slowest = statistics.median(one["p99"] for one in found)
            rows.append([load, name, f"{middle[name]:.1f}", ratio, f"{slowest:.0f}"])
    return markdown(rows)


def serving(folder: Path = RESULTS) -> str:
    """The README's part on the server, of each processor that there are such results of."""
    blocks = []
    for path in sorted(folder.glob("*/serving.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        blocks.append(f"{path.parent.name}, {result['model']}, {result['texts']:,} different texts:")
        if "loads" in result:
            blocks.append(serving_table(result["loads"]["rounds"]))
        if "soak" in result:
            soak = result["soak"]
            (first, second), (least, most) = (
                soak[key] for key in ("MiB per hour, first and second half", "least and most MiB once warm")
            )
            blocks.append(
                f"{soak['requests']:,} requests in {soak['seconds'] / 60:.0f} minutes of load on a busy machine: "
                f"{least:.0f} to {most:.0f} MiB once warm, {first:+.0f} MiB an hour in the first half of that and "
                f"{second:+.0f} in the second; {soak['refused']} refused."
            )
    return "\n\n".join(blocks) + "\n"


def index_table(engines: list[Result]) -> str:
    """Milliseconds of a query, what is found of the exact results, and the bytes that each form takes on the disk."""
    rows = [["", "p50, ms", "p99, ms", "recall@k", "MB on the disk"]]
    for one in engines:
        size = f"{one['bytes'] / 1e6:,.0f}" if one["bytes"] else ""
        rows.append([one["engine"], f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['recall']:.3f}", size])
    return markdown(rows)


def indexes(folder: Path = RESULTS) -> str:
    """The longer page's part on indexes, of each processor that there are such results of."""
    blocks = []
    for path in sorted(folder.glob("*/index.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        made = "drawn vectors" if result["drawn"] else "vectors of texts and mixtures of them"
        blocks += [
            f"{path.parent.name}, {result['machine']['torch_threads']} threads, {result['rows']:,} {made}, of "
            f"{result['dim']} dimensions, one query at a time, k = {result['k']}:",
            index_table(result["engines"]),
        ]
    return "\n\n".join(blocks) + "\n"


def gpu_table(parts: Result) -> str:
    """Texts a second on a GPU, of encoding and of training, and how they compare with the peer's of the same format."""
    rows = [["", "number format", "mtl, texts a second", "the peer's", "mtl is"]]
    for name, part in parts.items():
        rates = part.get("texts per second", {})
        for precision in PRECISIONS:
            own = rates.get(f"mtl {precision}")
            peers = [key for key in rates if precision in key and not key.startswith("mtl")]
            rows += [[name, precision, f"{own:,.0f}", f"{rates[peer]:,.0f} ({peer.replace(f' {precision}', '')})",
                      f"{own / rates[peer]:.2f} x"] for peer in peers if own]  # fmt: skip
    return markdown(rows)


def gpus(folder: Path = RESULTS) -> str:
    """The longer page's part on GPUs."""
    blocks = []
    for path in sorted(folder.glob("*/gpu.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine, parts = result["machine"], result["gpu"]
        vectors, losses = parts["vectors"], parts["training"]["largest relative difference"]
        errors = ", ".join(
            f"{precision} {found['largest difference']:.1e} (cosine at least {found['smallest cosine']:.5f})"
            for precision, found in vectors.items()
            if isinstance(found, dict)
        )
        blocks += [
            f"{machine['gpu']}, {machine['cores']} cores, torch {machine['torch']}, {result['model']}, taken "
            f"{machine['date']} at {machine['commit']}.",
            gpu_table(parts),
            f"Largest difference from the CPU's fp32 vectors, {vectors['texts']} texts of up to 512 tokens: {errors}. "
            f"Losses of six steps of training, dropout on, and the CPU's: within {losses:.0e} of each other.",
        ]
    return "\n\n".join(blocks) + "\n"


def replaced(text: str, name: str, content: str) -> str:
    """A text with other content between the marks of this name."""
    marked = re.compile(rf"(?<=<!-- {name}:begin -->\n).*(?=<!-- {name}:end -->)", re.DOTALL)
    return marked.sub(lambda _: content, text)


def main() -> None:
    for path, parts in (
        (README, {"speed": brief()}),
        (ALL, {"speed": render(), "faults": faults(), "serving": serving(), "index": indexes(), "gpu": gpus()}),
    ):
        text = path.read_text(encoding="utf-8")
        for name, content in parts.items():
            text = replaced(text, name, content)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
