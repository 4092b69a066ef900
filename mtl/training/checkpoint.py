"""Training state on disk: written to a temporary name, synced, renamed; checked by hash when it is read.

    checkpoints/step-00000120/model.safetensors      weights
                              optimizer.safetensors  AdamW's moments, as <parameter>.<moment>
                              rng.safetensors        the state of torch's generators
                              state.json             step, recipe, data, size of the metrics file, hashes
    checkpoints/best.safetensors                     the weights of the best epoch so far

The last two are kept. A process that is killed at any moment leaves at least one that is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl.errors import CheckpointError, WeightsError
from weights.export import write_json, write_tensors
from weights.fetch import sha256_of
from weights.load import read_tensors

KEPT = 2
PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands: after ``step`` steps. ``run`` says which run it is, ``tensors`` maps file -> tensors."""

    step: int
    metrics_bytes: int
    run: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def sync(path: Path) -> None:
    """Have the file's, or the folder's, content on the disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != PARTIAL), reverse=True)


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint, then delete all but the last ones.

    Raises:
        CheckpointError: it cannot be written; those before it are as they were.
    """
    final = folder / f"step-{state.step:08d}"
    partial = final.with_suffix(PARTIAL)
    try:
        for stale in folder.glob(f"step-*{PARTIAL}"):  # of a process that was killed
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
        hashes = {}
        for name, tensors in state.tensors.items():
            path = partial / f"{name}.safetensors"
            write_tensors(path, tensors)
            hashes[path.name] = sha256_of(path)
            sync(path)
        fields = {"step": state.step, "metrics_bytes": state.metrics_bytes, "run": state.run, "sha256": hashes}
        write_json(partial / "state.json", fields)
        sync(partial / "state.json")
        if final.exists():  # the same step of the same run
            shutil.rmtree(final)
        partial.rename(final)
        sync(folder)
    except (OSError, WeightsError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{final} cannot be written: {reason(error)}; the checkpoint before it is whole"
        ) from None
    for old in saved(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file in place of another, in one step.

    Raises:
        CheckpointError: it cannot be written; what was there before still is.
    """
    partial = path.with_suffix(PARTIAL)
    try:
        write_tensors(partial, dict(tensors))
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except (OSError, WeightsError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {reason(error)}") from None


def reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


def read(path: Path) -> State:
    """Read one checkpoint.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    try:
        fields = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {}
        for name, sha256 in fields["sha256"].items():
            if sha256_of(path / name) != sha256:
                raise CheckpointError(f"{path / name} is not what was written")
            tensors[name.removesuffix(".safetensors")] = read_tensors(path / name)
        return State(fields["step"], fields["metrics_bytes"], fields["run"], tensors)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, WeightsError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None


def latest(folder: Path) -> tuple[State, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not.

    One that is not is set aside under another name.

    Raises:
        CheckpointError: there is none.
    """
    notes: list[str] = []
    for path in saved(folder):
        try:
            return read(path), notes
        except CheckpointError as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            notes.append(f"{error}; it is set aside as {aside.name}, and the one before it is used")
    raise CheckpointError(f"{folder} holds no whole checkpoint; start again without --resume, or in another folder")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two runs, as ``training.seed was 0, is 1``."""
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, is {new!r}")
    return found
