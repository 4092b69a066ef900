"""A door for others: a kind of task, a loss or a metric of a user's own, without a change to this library.

What is registered is known to this process alone: a script that trains, or loads, registers first.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from mtl.errors import InputError, shown
from mtl.tasks.kinds import ALL, KINDS
from mtl.tasks.kinds.base import Kind
from mtl.tasks.kinds.classes import ClassKind
from mtl.tasks.registry import LOSSES, METRICS, Own

K = TypeVar("K", bound=type[Kind])
F = TypeVar("F", bound=Callable[..., Any])

NAME = re.compile(r"[A-Za-z][\w-]*")
BUILT_IN = {kind.name for kind in ALL}


def register_kind(kind: K) -> K:
    """Make a class a kind of task, which a TaskSpec, or a recipe's [[task]], names by the class's ``name``.

    It may stand as a decorator. The class is one of ``mtl.Kind``, or of one of our own kinds, as ``mtl.HeadKind`` or
    ``mtl.SingleLabel``, of which it changes what it wants: ``target`` and ``stacked`` (how labels are read), ``branch``
    (the head), ``loss`` and ``count``, ``scores`` and ``words`` (what predict says; of ``level`` "token" ``logits`` and
    ``spans`` do), ``measure`` and ``own_metrics``. Fields of its ``Options`` that a TaskSpec has not are given in the
    task's ``options``. Registered again under the same name, it takes the place of what was there.

    Raises:
        InputError: it is no such class, lacks something, or its name is one of ours.
    """
    if not (isinstance(kind, type) and issubclass(kind, Kind)):
        raise InputError(f"kind is {shown(kind)}; expected a class of mtl.Kind")
    name = getattr(kind, "name", None)
    check_name("kind", name, BUILT_IN)
    missing = {*getattr(kind, "__abstractmethods__", ())}
    if kind.level == "token":
        missing |= {name for name in ("logits", "spans") if getattr(kind, name) is getattr(Kind, name)}
    if missing:
        raise InputError(
            f"kind {name!r} lacks {', '.join(sorted(missing))}; expected a class that defines all of Kind's"
        )
    metrics = getattr(kind, "own_metrics", None)
    by_name = isinstance(metrics, Mapping) and metrics and all(sign in (1, -1) for sign in metrics.values())
    if not (by_name or isinstance(metrics, (property, cached_property))):
        given = f"own_metrics {shown(metrics)}" if metrics else "no own_metrics"
        raise InputError(f"kind {name!r} has {given}; expected each metric's name with 1 or -1, the main one first")
    if not dataclasses.is_dataclass(kind.Options):
        raise InputError(
            f"kind {name!r} has Options that are no dataclass; expected one, with a default for each field"
        )
    if bare := [field.name for field in dataclasses.fields(kind.Options) if required(field)]:
        raise InputError(f"kind {name!r} has no default for {bare[0]}; expected one for each field of its Options")
    KINDS[str(name)] = kind
    return kind


def register_loss(
    name: str, function: Callable[[Tensor, Tensor], Tensor], kinds: str | Sequence[str] = "single-label"
) -> None:
    """Make a function a loss, which tasks of these kinds take by ``loss = name``.

    It is given a piece's outputs (rows, ...) and targets (rows, ...), both as the kind's own loss has them, of "tokens"
    those of all tokens with a label, (tokens, tags) and (tokens,); and gives one number for each row or token, with a
    graph. A window's loss is their mean, in whatever parts it is computed.

    Raises:
        InputError: the name, the function or a kind is not what it should be.
    """
    taken = {loss for kind in ALL for loss in getattr(kind.Options, "losses", ())}
    check_name("loss", name, taken)
    LOSSES[name] = Own(checked("loss", name, function), checked_kinds("loss", name, kinds))


def register_metric(
    name: str,
    function: Callable[[Tensor, Tensor], float],
    kinds: str | Sequence[str] = "single-label",
    *,
    less_is_better: bool = False,
) -> None:
    """Make a function a metric of all tasks of these kinds: in each epoch's dev metrics, as ``best``, in evaluations.

    It is given the outputs of all rows, in the units of the data, and their targets, as for ``register_loss``, on the
    CPU and without a graph, and gives a number.

    Raises:
        InputError: the name, the function or a kind is not what it should be.
    """
    found = checked_kinds("metric", name, kinds)
    taken = [getattr(KINDS[kind], "own_metrics", ()) for kind in found]
    ece = {"ece"} if any(issubclass(KINDS[kind], ClassKind) for kind in found) else set()
    check_name("metric", name, {*ece, *(metric for own in taken if isinstance(own, Mapping) for metric in own)})
    METRICS[name] = Own(checked("metric", name, function), found, -1 if less_is_better else 1)


def required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def check_name(what: str, name: object, taken: set[str]) -> None:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise InputError(f"{what} has the name {shown(name)}; expected letters, digits, - and _")
    if name in taken:
        raise InputError(f"{what} has the name {name!r}, which is one of ours; expected another")


def checked(what: str, name: str, function: F) -> F:
    """The function, if it can be called with outputs and targets."""
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        given = f"{what} {name!r} is {shown(function)}"
        raise InputError(f"{given}; expected a function of outputs and targets") from None
    return function


def checked_kinds(what: str, name: str, kinds: str | Sequence[str]) -> tuple[str, ...]:
    """The names of kinds, all of which are known."""
    listed = (kinds,) if isinstance(kinds, str) else tuple(kinds) if isinstance(kinds, Sequence) else ()
    if not listed or any(kind not in KINDS for kind in listed):
        raise InputError(f"{what} {name!r} is for {shown(kinds)}; expected one or more of {', '.join(KINDS)}")
    return listed
