"""Reading the files of a model's folder: JSON and safetensors, nothing outside it and the hub's cache, nothing else.

What a folder says is not trusted: it may come from anyone. Each reader either gives what was asked for, of the
type that was asked for, or raises one line that names the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtl.errors import ConfigError, WeightsError, one_line, printable, shown

T = TypeVar("T")

KINDS = {bool: "true or false", int: "a whole number", str: "a string", list: "a list", dict: "an object"}


def inside(folder: Path, *parts: str) -> Path:
    """The path of a file or folder in a model's folder.

    Raises:
        WeightsError: the path, or a link on it, leads out of the folder and into no cache of the hub's, or nowhere; or
            there is neither file nor folder but something that could be read for ever; or a pointer of git-lfs.
    """
    path = folder.joinpath(*parts)
    try:
        root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
        broken = path.is_symlink() and not target.exists()
        odd = target.exists() and not target.is_file() and not target.is_dir()
        allowed = target.is_relative_to(root) or any(target.is_relative_to(store) for store in hub_stores(root, path))
        pointer = allowed and not odd and target.is_file() and is_pointer(target)
    except (OSError, ValueError):
        raise WeightsError(f"{folder} holds no file called {shown('/'.join(parts))}") from None
    if not allowed:
        advice = "; expected a file inside it, or in the hub's cache: copy it there (cp -rL copies what links lead to)"
        raise WeightsError(f"{path} leads to {target}, out of the model's folder{advice}")
    if broken:
        raise WeightsError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if odd:
        raise WeightsError(f"{path} is neither file nor folder")
    if pointer:
        raise WeightsError(f"{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` in {folder}")
    return path


def hub_stores(folder: Path, path: Path) -> Iterator[Path]:
    """Where the hub's caches that a path leads through keep their files: cache/models--org--name/blobs, of which each
    file of cache/models--org--name/snapshots/COMMIT is a link into it. What looks like a cache in the folder is none.
    """
    for _ in range(8):  # links that lead to links
        path = Path(os.path.realpath(path.parent)) / path.name
        for place in path.parents:
            repository = place.parents[1] if place.parent.name == "snapshots" else place.parent
            whole = all((repository / name).is_dir() for name in ("blobs", "snapshots"))
            known = whole and (place.parent.name == "snapshots" or place.name == "blobs")
            if known and not repository.is_relative_to(folder):
                yield repository
                yield Path(os.path.realpath(repository / "blobs"))
        if not path.is_symlink():
            return
        path = path.parent / os.readlink(path)


def is_pointer(path: Path) -> bool:
    """Whether git-lfs left its pointer of some 130 bytes in a file's place."""
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/spec")


def read_json(path: Path) -> Any:
    """A JSON file's content; a WeightsError if it is missing, is not JSON, or escapes half of a surrogate pair."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; expected a folder that holds it") from None
    except RecursionError:
        raise WeightsError(f"{path} cannot be read as JSON: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {one_line(error)}") from None


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON file that holds one object; an optional file that is absent counts as an empty one."""
    content = {} if optional and not path.exists() else read_json(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def field(fields: Mapping[str, Any], name: str, kind: type[T], default: T, source: Path) -> T:
    """A field of an object that was read from JSON; one that is absent or null counts as the default, and one of
    another type is a ConfigError."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise ConfigError(f"{source}: {name} is {shown(value)}; expected {KINDS[kind]}")
    return value


def positive(fields: Mapping[str, Any], name: str, source: Path) -> int:
    """A field that is a whole number of 1 or more; anything else is a ConfigError."""
    value = field(fields, name, int, 0, source)
    if value < 1:
        raise ConfigError(f"{source}: {name} is {value}; expected 1 or more")
    return value


def strings(fields: Mapping[str, Any], name: str, source: Path) -> dict[str, str]:
    """A field that is an object of strings; anything else is a ConfigError."""
    values: dict[str, Any] = field(fields, name, dict, {}, source)
    for key, value in values.items():
        if not isinstance(value, str):
            raise ConfigError(f"{source}: {name}.{shown(key)} is {shown(value)}; expected a string")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, memory-mapped; a WeightsError if it is missing, damaged, or of another format."""
    if not path.exists():
        raise WeightsError(f"{path} is missing{instead_of(path)}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({one_line(error)}); fetch or save it again") from None


def instead_of(path: Path) -> str:
    """What lies where a safetensors file should, and what to do."""
    pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.ckpt") for p in path.parent.glob(kind))
    if not pickles:
        return "; expected the model's weights as safetensors"
    return (
        f" (found {pickles[0]}, a pickle, which is never opened); save the model with safetensors, as transformers' "
        "save_pretrained does, or take the hub's own conversion, a pull request: org/name@refs/pr/N"
    )


def read_weights(folder: Path, part: str = "") -> tuple[dict[str, Tensor], Path]:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json lists; and that file.

    Raises:
        WeightsError: a file is missing, damaged, or outside the folder; or a shard lacks what the index says of it.
    """
    path, index = inside(folder, part, "model.safetensors"), inside(folder, part, "model.safetensors.index.json")
    if path.exists() or not index.exists():
        return read_tensors(path), path
    places = strings(read_object(index), "weight_map", index)
    if not places:
        raise WeightsError(f"{index}: weight_map names no file; expected one for each tensor")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        file = inside(folder, part, shard)
        if file.suffix != ".safetensors":
            raise WeightsError(f"{index} names {printable(shard)}; expected a file of safetensors")
        if not file.exists():
            raise WeightsError(f"{file} is missing, which {index.name} names; fetch or copy it too")
        held = read_tensors(file)
        twice = sorted(held.keys() & tensors.keys())
        absent = sorted(name for name, place in places.items() if place == shard and name not in held)
        if twice or absent:
            what = f"lacks {printable(absent[0])}" if absent else f"holds {printable(twice[0])} a second time"
            raise WeightsError(f"{file} {what}; expected what {index.name} says")
        tensors |= held
    return tensors, index


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: object
) -> dict[str, Tensor]:
    """The tensors in float32, if they are those that are expected: names compared as sets, shapes one by one.

    Nothing is allocated before all shapes are known to be right. Of float32 tensors none is copied.

    Raises:
        WeightsError: tensors that are missing, unexpected or misshapen; it lists them. Or one that holds whole
            numbers or booleans, or an infinity or NaN.
    """
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    for name in sorted(tensors.keys() - expected.keys()):
        problems.append(f"unexpected {printable(name)}")
    for name in sorted(expected.keys() & tensors.keys()):
        found = tensors[name]
        if found.shape != expected[name]:
            problems.append(f"{name} is {tuple(found.shape)}, expected {tuple(expected[name])}")
        elif not found.is_floating_point():
            problems.append(f"{name} is of {str(found.dtype).removeprefix('torch.')}, expected floating-point numbers")
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise WeightsError(f"{source}: tensors do not fit the config: {listed}")
    widened = {name: tensor.float() for name, tensor in tensors.items()}
    endless = [name for name, tensor in widened.items() if not finite(tensor)]
    if endless:
        raise WeightsError(f"{source}: {endless[0]} holds an infinity or NaN; expected finite numbers")
    return widened


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A sum tells in one pass, unless it overflows itself.

    numpy takes it in one thread: torch's threads would wait for each other, which costs tenths of a second beside
    other processes.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(tensor.numpy().sum()) or bool(tensor.isfinite().all())
