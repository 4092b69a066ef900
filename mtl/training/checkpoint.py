"""Training state on disk: written to a temporary name, synced, renamed; checked by hash when it is read.

    checkpoints/step-00000120/model.safetensors      weights
                              optimizer.safetensors  AdamW's moments, as <parameter>.<moment>
                              state.json             step, best epoch, recipe, data, hashes
    checkpoints/best.safetensors                     the weights of the best epoch so far

The last two are kept. A process that is killed at any moment leaves at least one that is whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl.checkpoints.fetch import sha256_of
from mtl.checkpoints.files import read_tensors
from mtl.checkpoints.save import write_json, write_tensors
from mtl.disk import atomic_write, remove, sweep, sync
from mtl.errors import CheckpointError, WeightsError, one_line
from mtl.errors import differences as differences
from mtl.errors import differing as differing

KEPT = 2


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands: after ``step`` steps.

    ``run`` says which run it is, ``best`` which epoch was the best on the dev data and its metric, and
    ``tensors`` maps files to their tensors.
    """

    step: int
    best: tuple[int, float] | None
    run: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def begun(folder: Path) -> bool:
    """Whether there ever was a checkpoint, even one that is damaged now."""
    return any(folder.glob("step-*")) or any(folder.glob("damaged-*"))


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint, then delete all but the last ones, and what a process that was killed left behind.

    Raises:
        CheckpointError: it cannot be written; those before it are as they were.
    """
    final = folder / f"step-{state.step:08d}"
    sweep(folder)
    with atomic_write(final, CheckpointError, folder=True) as partial:
        hashes = {}
        for name, tensors in state.tensors.items():
            path = partial / f"{name}.safetensors"
            write_tensors(path, tensors)
            hashes[path.name] = sha256_of(path)
            sync(path)
        fields = {key: getattr(state, key) for key in ("step", "best", "run")}
        write_json(partial / "state.json", {**fields, "sha256": hashes})
        sync(partial / "state.json")
        remove(final)  # the same step of the same run
    for old in saved(folder)[KEPT:]:
        remove(old)
    return final


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file in place of another, in one step.

    Raises:
        CheckpointError: it cannot be written; what was there before still is.
    """
    with atomic_write(path, CheckpointError) as partial:
        write_tensors(partial, dict(tensors))


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
        best = fields["best"] and tuple(fields["best"])
        return State(fields["step"], best, fields["run"], tensors)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, WeightsError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None


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
            remove(aside)
            path.rename(aside)
            notes.append(f"{error}; it is set aside as {aside.name}, and the one before it is used")
    raise CheckpointError(f"{folder} holds no whole checkpoint; start again in another folder")
