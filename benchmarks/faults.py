"""kill -9 at random moments of all that writes, then going on: the bytes of a run that nobody disturbed, or not?

Each process is killed somewhere in its life, and the next one goes on, and is killed in turn, until one comes to its
end. Then every file must be as after an undisturbed run, and nothing else be there. What is lost or doubled is counted
in rows (by text, id or vector) or, of a training run, in steps.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch  # noqa: F401 (loaded once, here, so that a process begins its work at once)

from benchmarks import machine
from mtl.display import table

FORMATS = (".npy", ".safetensors", ".jsonl", ".csv", ".parquet")
ROWS, FILES = 30_000, 12
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "runs",
    "far",
    "away",
    "to",
    "them",
)
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # a node dies with these
FORK = multiprocessing.get_context("fork")
Units = Callable[[Path], Counter[Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command that writes into a folder, what to add to it to go on, and what to count in the folder.

    ``victims`` gives the processes, of those of a command, of which one is to be killed; where the command must
    outlive that, it ``endures``.
    """

    name: str
    command: Callable[[Path], list[str]]
    units: Units
    go_on: tuple[str, ...] = ()
    victims: Callable[[int], Sequence[int]] = lambda pid: [pid]
    endures: bool = False


@dataclasses.dataclass
class Tally:
    """How many moments there were, how many of them the bytes survived, and what was lost or doubled."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0


def run_command(arguments: list[str], log: Path) -> None:
    """In a process of its own: the command line, which says what it says to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from mtl.cli import main

    main(arguments)


def start(arguments: list[str], log: Path) -> Any:
    process = FORK.Process(target=run_command, args=(arguments, log))
    process.start()
    return process


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash; pictures aside, which belong to no result."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def await_victims(subject: Subject, process: Any) -> Sequence[int]:
    """The processes that may be killed, as soon as there are some; none, where the command ended before."""
    while process.is_alive():
        if found := subject.victims(process.pid):
            return found
        process.join(0.1)
    return ()


def disturb(subject: Subject, process: Any, pause: float, draw: random.Random) -> int:
    """Kill something, after a pause from when there is something to kill; how many were killed."""
    await_victims(subject, process)
    process.join(pause)
    victims = await_victims(subject, process)
    if not victims:
        return 0
    victim = draw.choice(victims)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    if victim == process.pid:
        process.join()
        return int(process.exitcode == -signal.SIGKILL)  # or it came to its end first
    return 1


def one_life(
    subject: Subject, output: Path, log: Path, most: int, seconds: float, draw: random.Random
) -> tuple[int, str]:
    """Begin, be killed, go on, until the end comes: how often it was killed, and what went wrong."""
    killed = 0
    while True:
        go_on = subject.go_on if any(output.iterdir()) else ()
        process, before = start([*subject.command(output), *go_on], log), killed
        while process.is_alive() and killed < most:
            killed += disturb(subject, process, draw.uniform(0, seconds), draw)
        process.join()
        if process.exitcode == 0:
            return killed, ""
        if subject.endures or killed == before:
            return killed, log.read_text(errors="replace")[-1000:]


def disturbed(subject: Subject, folder: Path, moments: int, draw: random.Random) -> Tally:
    """A subject, killed at so many moments, beside itself undisturbed.

    Pauses are drawn up to the time that it takes undisturbed, from when there is something to kill.
    """
    tally, log = Tally(), folder / "log"
    whole, output = folder / "whole" / "run", folder / "parts" / "run"  # a model's page holds its run's name
    whole.mkdir(parents=True)
    process = start(subject.command(whole), log)
    await_victims(subject, process)
    began = time.monotonic()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{subject.name}: {log.read_text()[-1000:]}")
    seconds, expected, wanted = time.monotonic() - began, contents(whole), subject.units(whole)
    while tally.tried < moments:
        output.mkdir(parents=True)
        killed, wrong = one_life(subject, output, log, moments - tally.tried, seconds, draw)
        found, units = contents(output), subject.units(output)
        same = not wrong and found == expected
        tally.tried += killed
        tally.survived += killed if same else 0
        tally.lost += (wanted - units).total()
        tally.doubled += (units - wanted).total()
        if not same:
            other = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            print(f"{subject.name}: {', '.join(other)} differ; {wrong}", file=sys.stderr, flush=True)
        shutil.rmtree(output)
    return tally


def children(pid: int) -> Iterator[int]:
    """The processes below one, by their ids (Linux)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    yield from below - {pid}


def named(start: str, but: tuple[str, ...] = ()) -> Callable[[int], list[int]]:
    """Victims by what their command line begins with, or its program is called."""

    def victims(pid: int) -> list[int]:
        found = []
        for child in children(pid):
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            program = line.split("\0")[0]
            if (line.startswith(start) or program.endswith(f"/{start}")) and not line.startswith(but):
                found.append(child)
        return found

    return victims


def texts() -> list[str]:
    """Short ones, no two alike."""
    draw = random.Random(0)
    return [f"{' '.join(draw.choices(WORDS, k=draw.randint(1, 12)))} {i}" for i in range(ROWS)]


def steps(folder: Path) -> Counter[Any]:
    """The steps and epochs that a run's records tell of."""
    paths = folder.rglob("metrics.jsonl")
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return Counter((record.get("step"), record.get("epoch")) for record in records)


def rows_of(name: str) -> Units:
    """The rows of an output, by their texts, or by their vectors where there are no texts."""

    def rows(folder: Path) -> Counter[Any]:
        path = folder / name
        if not path.exists():
            return Counter()
        if path.suffix == ".jsonl":
            return Counter(json.loads(line)["text"] for line in path.read_text().splitlines())
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                return Counter(row["text"] for row in csv.DictReader(file))
        if path.suffix == ".parquet":
            return ids(folder, "text")
        from numpy import load
        from safetensors.numpy import load_file

        vectors = load(path) if path.suffix == ".npy" else load_file(path)["embeddings"]
        return Counter(map(bytes, vectors))

    return rows


def ids(folder: Path, column: str = "id") -> Counter[Any]:
    """The ids in all Parquet files of a folder."""
    import pyarrow.parquet as pq

    paths = folder.rglob("*.parquet")
    return Counter(each for path in paths for each in pq.read_table(path, columns=[column])[column].to_pylist())


def prepare(folder: Path) -> None:
    """The model, a recipe, a file of texts and a corpus."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from benchmarks.small import save_small_model
    from mtl.training.recipe import BUNDLED

    save_small_model(folder / "small")
    recipe = (BUNDLED / "demo.toml").read_text(encoding="utf-8")
    recipe = recipe.replace("all-MiniLM-L6-v2", str(folder / "small")).replace('"demo/', f'"{BUNDLED}/demo/')
    recipe = recipe.replace("epochs = 4", "epochs = 2\nsave_steps = 3")
    (folder / "demo.toml").write_text(recipe, encoding="utf-8")
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts()), encoding="utf-8")
    (folder / "corpus").mkdir()
    share = ROWS // FILES
    for i in range(FILES):
        part = texts()[i * share : (i + 1) * share]
        pq.write_table(pa.table({"text": part, "id": [f"{i}-{j}" for j in range(share)]}),
                       folder / "corpus" / f"{i}.parquet")  # fmt: skip


def subjects(folder: Path, ray: bool) -> list[Subject]:
    """All that is disturbed."""
    model, threads = ["--model", str(folder / "small")], ["--threads", "1"]

    def training(output: Path) -> list[str]:
        return ["train", str(folder / "demo.toml"), "--output", str(output), *threads]

    def embedding(name: str) -> Callable[[Path], list[str]]:
        source = ["--input", str(folder / "texts.txt")]
        return lambda output: ["embed", *model, *threads, *source, "--output", str(output / name)]

    def corpus(*options: str) -> Callable[[Path], list[str]]:
        fixed = ["embed-corpus", str(folder / "corpus"), *model, *threads, *options]
        return lambda output: [*fixed, "--output", str(output)]

    found = [Subject("mtl train", training, steps, ("--resume",))]
    for suffix in FORMATS:
        name = f"vectors{suffix}"
        found.append(Subject(f"mtl embed, {suffix}", embedding(name), rows_of(name), ("--resume",)))
    found.append(Subject("mtl embed-corpus", corpus(), ids))
    if ray:
        on_ray = corpus("--address", "local", "--actors", "2")
        actor, worker, node = named("ray::MapWorker"), named("ray::", but=("ray::MapWorker", *AGENTS)), named("raylet")
        found += [
            Subject("mtl embed-corpus on Ray: an actor", on_ray, ids, victims=actor, endures=True),
            Subject("mtl embed-corpus on Ray: another worker", on_ray, ids, victims=worker, endures=True),
            Subject("mtl embed-corpus on Ray: the driver", on_ray, ids),
            Subject("mtl embed-corpus on Ray: the node", on_ray, ids, victims=node),
        ]
    return found


@click.command(help=__doc__)
@click.option("--moments", default=20, show_default=True, help="How often each is killed.")
@click.option("--only", default="", help="Those whose names hold this.")
@click.option("--ray", is_flag=True, help="On a Ray of this machine too.")
@click.option("--seed", default=0, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Results folder; what was not tried now stays there.")
def main(moments: int, only: str, ray: bool, seed: int, save: Path | None) -> None:
    found: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        preparing = FORK.Process(target=prepare, args=(folder,))  # no thread of torch's may run before the others
        preparing.start()
        preparing.join()
        for subject in subjects(folder, ray):
            if only in subject.name:
                draw = random.Random(f"{seed} {subject.name}")
                began = time.monotonic()
                found[subject.name] = disturbed(subject, folder / subject.name, moments, draw)
                told = f"{subject.name}: {found[subject.name]} in {time.monotonic() - began:.0f} s"
                print(told, file=sys.stderr, flush=True)
    header = ["killed", *(field.name for field in dataclasses.fields(Tally))]
    print(table([header, *([name, *dataclasses.astuple(tally)] for name, tally in found.items())]))
    described = machine.describe("pyarrow")
    path = machine.result_path(save, "faults")
    before = machine.earlier(path).get("tallies", {})
    tallies = {name: dataclasses.asdict(tally) | machine.when(described) for name, tally in found.items()}
    machine.write_result(path, {"machine": described, "seed": seed, "tallies": before | tallies})
    sys.exit(int(any(t.survived < t.tried or t.lost or t.doubled for t in found.values())))


if __name__ == "__main__":
    main()
