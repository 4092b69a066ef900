"""Reading the files of a model's folder: JSON and safetensors, nothing outside the folder, and nothing else.

What a folder says is not trusted: it may come from anyone. Each reader either gives what was asked for, of the
type that was asked for, or raises one line that names the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtl.errors import ConfigError, WeightsError, one_line, shown

T = TypeVar("T")

KINDS = {bool: "true or false", int: "a whole number", str: "a string", list: "a list", dict: "an object"}


def inside(folder: Path, *parts: str) -> Path:
    """The path of a file or folder in a model's folder.

    Raises:
        WeightsError: the path, or a link on it, leads out of the folder, or nowhere; or there is neither file nor
            folder but something that could be read for ever. In the hub's cache, links lead to its store beside the
            snapshots.
    """
    path = folder.joinpath(*parts)
    try:
        root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
        if root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir():
            root = root.parents[1]
        broken = path.is_symlink() and not target.exists()
        odd = target.exists() and not target.is_file() and not target.is_dir()
    except (OSError, ValueError):
        raise WeightsError(f"{folder} holds no file called {shown('/'.join(parts))}") from None
    if not target.is_relative_to(root):
        raise WeightsError(f"{path} leads to {target}, out of the model's folder; expected a file inside it")
    if broken:
        raise WeightsError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if odd:
        raise WeightsError(f"{path} is neither file nor folder")
    return path


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        WeightsError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
    """A field of an object that was read from JSON; one that is absent or null counts as the default.

    Raises:
        ConfigError: it is of another type.
    """
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise ConfigError(f"{source}: {name} is {shown(value)}; expected {KINDS[kind]}")
    return value


def positive(fields: Mapping[str, Any], name: str, default: int, source: Path) -> int:
    """A field that is a whole number of 1 or more.

    Raises:
        ConfigError: it is not.
    """
    value = field(fields, name, int, default, source)
    if value < 1:
        raise ConfigError(f"{source}: {name} is {value}; expected 1 or more")
    return value


def strings(fields: Mapping[str, Any], name: str, source: Path) -> dict[str, str]:
    """A field that is an object of strings.

    Raises:
        ConfigError: it is not.
    """
    values: dict[str, Any] = field(fields, name, dict, {}, source)
    for key, value in values.items():
        if not isinstance(value, str):
            raise ConfigError(f"{source}: {name}.{shown(key)} is {shown(value)}; expected a string")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, memory-mapped.

    Raises:
        WeightsError: the file is missing, damaged, or another format.
    """
    if not path.exists():
        shards = sorted(p.name for p in path.parent.glob("*-of-*.safetensors"))
        pickles = sorted(p.name for p in path.parent.glob("*.bin"))
        found = f" (found {pickles[0]}, a pickle, which is never opened)" if pickles else ""
        found = f" (found {shards[0]}, one shard of several)" if shards else found
        raise WeightsError(
            f"{path} is missing{found}; save the model with safetensors in one file, as transformers' "
            "save_pretrained(folder, max_shard_size='10GB') does"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({one_line(error)}); fetch or save it again") from None


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
        problems.append(f"unexpected {name if len(name) < 100 and name.isprintable() else shown(name)}")
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
