"""Starts engines, each in a process of its own, and talks to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Setting:
    """How an engine is run: texts in a batch, and batches at once."""

    batch: int
    streams: int


@dataclass(frozen=True)
class Place:
    """What all engines of a run share: the model's folder, the threads, the device."""

    folder: str
    threads: int
    device: str


class Worker:
    """An engine in a process of its own; ``cold`` is the time from its start to its first vector."""

    def __init__(self, name: str, place: Place, setting: Setting) -> None:
        self.name = name
        self.setting = setting
        limits = {key: str(place.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        arguments = [name, place.folder, str(place.threads), str(setting.streams), place.device]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env=os.environ | limits | quiet,
        )  # fmt: skip
        self.answer()
        self.cold = time.perf_counter() - started

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").splitlines()
            raise click.ClickException(f"{self.name} stopped: {said[-1] if said else 'it was killed'}")
        return dict(json.loads(line))

    def send(self, texts: list[str], batch: int, save: str | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"texts": texts, "batch": batch, "save": save}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def seconds(self, texts: list[str], save: str | None = None) -> float:
        """How long all texts take, in batches of this worker's setting."""
        return float(self.send(texts, self.setting.batch, save)["seconds"])

    def latencies(self, texts: list[str]) -> list[float]:
        """How long each text takes, one at a time."""
        return list(self.send(texts, 0)["seconds"])

    def peak_mib(self) -> float:
        return float(self.send(["Rain."], 1)["peak_mib"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


@contextmanager
def workers(settings: dict[str, Setting], place: Place) -> Iterator[dict[str, Worker]]:
    """Engines by name, all running; closed afterwards."""
    started: dict[str, Worker] = {}
    try:
        for name, setting in settings.items():
            started[name] = Worker(name, place, setting)
        yield started
    finally:
        for worker in started.values():
            worker.close()
