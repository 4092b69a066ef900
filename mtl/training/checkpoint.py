"""Training state on disk: written to a temporary name, synced, renamed; checked by hash when it is read.

    checkpoints/step-00000120/model.safetensors      weights
                              optimizer.safetensors  AdamW's moments, as <parameter>.<moment>
                              state.json             step, best epoch, recipe, data, hashes
    checkpoints/best-00000080.safetensors            the weights of the best epoch so far, which ended with that step
    checkpoints/frozen-<sha256>.safetensors          weights or moments that the phase does not train

What does not change is written once, and named by each checkpoint that it is a part of. The last two are kept, and
what they name. A process that is killed at any moment leaves at least one that is whole; files that it had no time to
name are of no account.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl.checkpoints.fetch import sha256_of
from mtl.checkpoints.files import read_tensors
from mtl.checkpoints.save import sha256_of_tensors, write_json, write_tensors
from mtl.disk import atomic_write, remove, sweep, sync
from mtl.errors import CheckpointError, WeightsError, one_line

KEPT = 2
ADVICE = "put back a copy of it, or delete it to choose among the epochs from here on"


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch on the dev data, its metric, and the file of its weights with its hash.

    ``frozen`` is the file of the weights that its phase did not train.
    """

    epoch: int
    value: float
    file: str
    sha256: str
    frozen: str | None = None


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands: after ``step`` steps.

    ``run`` says which run it is, and ``tensors`` maps files to their tensors.
    """

    step: int
    best: Best | None
    run: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def begun(folder: Path) -> bool:
    """Whether there ever was a checkpoint, even one that is damaged now."""
    return any(folder.glob("step-*")) or any(folder.glob("damaged-*"))


def write_frozen(folder: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """Write tensors that seldom change to a file named after its hash, if it is not there; gives the name."""
    if not tensors:
        return None
    path = folder / f"frozen-{sha256_of_tensors(tensors)}.safetensors"
    if not path.exists():
        with atomic_write(path, CheckpointError) as partial:
            write_tensors(partial, tensors)
    return path.name


def split(tensors: Mapping[str, Tensor], frozen: Set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that are trained, and the others; a moment goes with its parameter."""
    still = {name: x for name, x in tensors.items() if name in frozen or name.rpartition(".")[0] in frozen}
    return {name: x for name, x in tensors.items() if name not in still}, still


def save(folder: Path, state: State, frozen: Set[str] = frozenset()) -> Path:
    """Write a checkpoint, then delete all but the last ones, and what a process that was killed left behind.

    ``frozen`` are the names of weights that the steps before did not change. Where it cannot be written, a
    CheckpointError, those before it are as they were.
    """
    final = folder / f"step-{state.step:08d}"
    sweep(folder)
    parts = {name: split(tensors, frozen) for name, tensors in state.tensors.items()}
    files = {name: write_frozen(folder, still) for name, (_, still) in parts.items()}
    with atomic_write(final, CheckpointError, folder=True) as partial:
        hashes = {}
        for name, (tensors, _) in parts.items():
            path = partial / f"{name}.safetensors"
            hashes[path.name] = sha256_of_tensors(tensors)
            write_tensors(path, tensors)
            sync(path)
        best = state.best and dataclasses.asdict(state.best)
        about = {"step": state.step, "best": best, "run": state.run, "sha256": hashes, "frozen": files}
        write_json(partial / "state.json", about)
        sync(partial / "state.json")
        remove(final)  # the same step of the same run
    for old in saved(folder)[KEPT:]:
        remove(old)
    named = "".join(path.read_text(errors="replace") for path in folder.glob("step-*/state.json"))
    for path in [*folder.glob("best-*.safetensors"), *folder.glob("frozen-*.safetensors")]:
        if path.name not in named:
            remove(path)
    return final


def save_best(
    folder: Path, epoch: int, value: float, step: int, tensors: Mapping[str, Tensor], frozen: Set[str] = frozenset()
) -> Best:
    """Write the weights of the best epoch so far, which ended with a step; the checkpoint of that step names them."""
    trained, still = split(tensors, frozen)
    path, file = folder / f"best-{step:08d}.safetensors", write_frozen(folder, still)
    with atomic_write(path, CheckpointError) as partial:
        write_tensors(partial, trained)
    return Best(epoch, value, path.name, sha256_of_tensors(trained), file)


def is_whole(path: Path) -> bool:
    """Whether a file is what its name says."""
    return sha256_of(path) == path.stem.removeprefix("frozen-")


def read_frozen(folder: Path, name: str | None) -> dict[str, Tensor]:
    """The tensors of a file that is named after its hash; a CheckpointError if it is not what was written."""
    if name is None:
        return {}
    if not is_whole(folder / name):
        raise CheckpointError(f"{folder / name} is not what was written")
    return read_tensors(folder / name)


def read_best(folder: Path, best: Best) -> dict[str, Tensor] | None:
    """The weights of the best epoch, from their file or the checkpoint of their step; None if the file was deleted, and
    a CheckpointError if it is not what was written."""
    own = folder / best.file
    try:
        for path in (own, folder / own.stem.replace("best-", "step-") / "model.safetensors"):
            if path.is_file() and sha256_of(path) == best.sha256:
                return read_frozen(folder, best.frozen) | read_tensors(path)
        if not own.exists():
            return None
    except FileNotFoundError:  # what its phase did not train
        return None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ADVICE}") from None
    except (OSError, WeightsError) as error:
        raise CheckpointError(f"{own} cannot be read: {one_line(error)}") from None
    given = f"{own}, the weights of epoch {best.epoch}, the best so far, is not what was written"
    raise CheckpointError(f"{given}; {ADVICE}")


def read(path: Path) -> State:
    """Read one checkpoint; a CheckpointError if a file is missing, or is not what was written."""
    try:
        fields = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {}
        for name, sha256 in fields["sha256"].items():
            if sha256_of(path / name) != sha256:
                raise CheckpointError(f"{path / name} is not what was written")
            part = name.removesuffix(".safetensors")
            tensors[part] = read_tensors(path / name) | read_frozen(path.parent, fields.get("frozen", {}).get(part))
        best = Best(**fields["best"]) if fields["best"] else None
        return State(fields["step"], best, fields["run"], tensors)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, WeightsError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None


def latest(folder: Path) -> tuple[State, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not.

    These are set aside under another name, and so is a damaged file of what is frozen, which would be named again else.
    Where none is whole all stay as they are, so that a copy of a file can be put back. A CheckpointError says that
    there is none.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in saved(folder):
        try:
            state = read(path)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        notes = [f"{error}; it is set aside as {set_aside(each).name}, and the one before it is used"
                 for each, error in damaged]  # fmt: skip
        for frozen in folder.glob("frozen-*.safetensors") if damaged else ():
            if not is_whole(frozen):
                set_aside(frozen)
        return state, notes
    why = f" ({damaged[0][1]})" if damaged else ""
    raise CheckpointError(f"{folder} holds no whole checkpoint; start again in another folder{why}")


def set_aside(path: Path) -> Path:
    """Give what is damaged another name; gives that."""
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    path.rename(aside)
    return aside
