"""Requests a second of `mtl serve` and of infinity-emb, and whether the server's memory grows under load.

python -m benchmarks.serving [--infinity .venv-infinity] [--save benchmarks/results]
python -m benchmarks.serving --soak 3600 [--save benchmarks/results]

`make bench-serving` makes the environment of infinity. The load comes from wrk (`apt-get install wrk`), over 4,096
texts of 3 to 200 tokens, no two alike. All servers are up at once, and only one at a time is asked; rounds are
interleaved, and the middle one counts. Every server gets the weights of one folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, workloads
from benchmarks.soak import slope
from mtl import SentenceEncoder
from mtl.display import table

SCRIPT = Path(__file__).with_name("post.lua")
TEXTS = 4096
LOADS = {"1 client": (1, 1), "8 clients": (8, 1), "64 clients": (64, 1), "4 clients of 32 texts": (4, 32)}
OURS = {"mtl fp32": "fp32", "mtl auto": "auto", "mtl int8": "int8"}
PEER = "infinity fp32"
BASE = "mtl fp32"
WARM_UP = 1 / 6  # of a soak's time


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(name: str, folder: Path, port: int, infinity: Path | None) -> list[str]:
    """How a server is started."""
    if name == PEER:
        assert infinity
        return [
            str(infinity / "bin" / "infinity_emb"), "v2", "--model-id", str(folder), "--engine", "torch", "--device",
            "cpu", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model",
        ]  # fmt: skip
    return [
        sys.executable, "-m", "mtl", "serve", "--model", str(folder), "--precision", OURS[name], "--port", str(port),
        "--truncate",
    ]  # fmt: skip


def address(name: str, port: int) -> str:
    return f"http://127.0.0.1:{port}" + ("/embeddings" if name == PEER else "/v1/embeddings")


@contextlib.contextmanager
def serving(name: str, folder: Path, infinity: Path | None) -> Iterator[tuple[str, int]]:
    """A server's address and process, once it answers."""
    port = free_port()
    quiet = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(name, folder, port, infinity), stdout=log, stderr=log,
                                   env=os.environ | quiet)  # fmt: skip
        try:
            end = time.monotonic() + 180
            while not answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise click.ClickException(f"{name} does not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield address(name, port), process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def bodies(texts: list[str], each: int, path: Path) -> Path:
    """A file of requests with so many texts each."""
    path.write_text("".join(
        json.dumps({"model": "model", "input": texts[i : i + each] if each > 1 else texts[i]}) + "\n"
        for i in range(0, len(texts), each)
    ))  # fmt: skip
    return path


def different_texts(encoder: SentenceEncoder) -> list[str]:
    words, draw = workloads.single_token_words(encoder.tokenizer), random.Random(0)
    return [" ".join(next(words) for _ in range(draw.randint(3, 200))) for _ in range(TEXTS)]


def load(url: str, file: Path, clients: int, seconds: float) -> dict[str, float]:
    """What wrk says of a server under a load."""
    ran = subprocess.run(
        ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(SCRIPT), url, "--",
         str(file)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("JSON ")]
    found: dict[str, float] = json.loads(line.removeprefix("JSON "))
    return found | {"per second": found["requests"] / found["seconds"]}


def measured(
    urls: dict[str, str], files: dict[str, Path], seconds: float, rounds: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """By load and server, each round; a warm-up goes before the first, and a pause before each."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {each: [] for each in urls} for name in LOADS}
    for url in urls.values():
        load(url, files["8 clients"], 8, seconds / 2)
    for _ in range(rounds):
        for name, (clients, _) in LOADS.items():
            for server, url in urls.items():
                time.sleep(0.5)
                found[name][server].append(load(url, files[name], clients, seconds))
                said = found[name][server][-1]
                click.echo(f"{name}, {server}: {said['per second']:.1f} a second, p99 {said['p99']:.0f} ms", err=True)
    return found


def middle(rounds: list[dict[str, float]], what: str) -> float:
    return statistics.median(each[what] for each in rounds)


def shown(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The table: requests a second, how often the peer's, and latencies."""
    rows = [["load", "server", "requests/s", f"x {PEER}", "p50 ms", "p99 ms", "refused"]]
    for name, servers in found.items():
        for server, each in servers.items():
            rate = middle(each, "per second")
            peer = middle(servers[PEER], "per second") if PEER in servers else 0.0
            ratio = f"{rate / peer:.2f}" if peer else ""  # it may have answered nothing in so short a time
            rows.append([name, server, f"{rate:.1f}", ratio, f"{middle(each, 'p50'):.0f}", f"{middle(each, 'p99'):.0f}",
                         f"{sum(one['refused'] for one in each):.0f}"])  # fmt: skip
    return table(rows)


def resident(process: int) -> float:
    """MiB of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def soaked(url: str, process: int, file: Path, seconds: float) -> dict[str, Any]:
    """Memory under the load of 8 clients, some 600 times, and its slope after the first sixth of the time."""
    samples: list[tuple[float, float]] = []
    started, step = time.monotonic(), max(0.5, seconds / 600)
    loading = subprocess.Popen(
        ["wrk", "-t1", "-c8", f"-d{round(seconds)}s", "--timeout", "60s", "-s", str(SCRIPT), url, "--", str(file)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while loading.poll() is None:
        samples.append(((time.monotonic() - started) / 60, resident(process)))
        time.sleep(step)
    assert loading.stdout
    said = json.loads(next(line for line in loading.stdout if line.startswith("JSON ")).removeprefix("JSON "))
    warm = [sample for sample in samples if sample[0] * 60 >= WARM_UP * seconds]
    half = len(warm) // 2
    return {
        "seconds": seconds, **said, "MiB per hour": slope(warm),
        "MiB per hour, first and second half": [slope(warm[:half]), slope(warm[half:])],
        "least and most MiB once warm": [min(x for _, x in warm), max(x for _, x in warm)],
        "minute and MiB": samples[:: max(1, len(samples) // 60)],
    }  # fmt: skip


@click.command(help=__doc__)
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True)
@click.option("--infinity", type=click.Path(path_type=Path), help="The environment that infinity-emb is installed in.")
@click.option("--seconds", default=15.0, show_default=True, help="Of each load of each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--soak", type=float, help="Instead: load one server for so many seconds, and watch its memory.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder; a part that is left out stays there.")
def main(
    model: str, infinity: Path | None, seconds: float, rounds: int, soak: float | None, save: Path | None
) -> None:  # fmt: skip
    if not shutil.which("wrk"):
        raise click.ClickException("wrk is not installed; apt-get install wrk")
    path = machine.result_path(save, "serving")
    described = machine.describe()
    result = machine.earlier(path) | {"machine": described, "model": model, "texts": TEXTS}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder, encoder = Path(place), SentenceEncoder.from_pretrained(model)
        encoder.save(folder / "model")
        texts = different_texts(encoder)
        files = {name: bodies(texts, each, folder / f"{each}.jsonl") for name, (_, each) in LOADS.items()}
        if soak:
            url, process = stack.enter_context(serving(BASE, folder / "model", None))
            result["soak"] = soaked(url, process, files["8 clients"], soak) | machine.when(described)
            click.echo(f"{result['soak']['MiB per hour']:.1f} MiB an hour", err=True)
        else:
            names = [*OURS, *([PEER] if infinity else [])]
            up = {name: stack.enter_context(serving(name, folder / "model", infinity)) for name in names}
            found = measured({name: url for name, (url, _) in up.items()}, files, seconds, rounds)
            result["loads"] = {"seconds": seconds, "rounds": found} | machine.when(described)
            click.echo(shown(found))
    machine.write_result(path, result)


if __name__ == "__main__":
    main()
