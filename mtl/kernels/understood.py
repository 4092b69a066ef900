"""Which modules a program may stand for: those that are, part by part, what their class makes of their config.

A module is compared with a new one of the same config, on the meta device: types, which admit no subclass; the names
and shapes of parameters and buffers; settings; and nothing that changes what a call does, such as a hook, a
parametrization, which is another type, or a method that was set on the object. What differs is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from mtl.model import deberta, encoder, rotary
from mtl.model.dropout import Dropout
from mtl.model.heads import HiddenHead, LinearHead
from mtl.model.mpnet import MPNet
from mtl.model.pooling import DENSE_ACTIVATIONS, AttentionPooling, Dense, EachToken, LayerNorm, Normalize, Pooling

KNOWN: tuple[type[nn.Module], ...] = (
    nn.Embedding, nn.LayerNorm, nn.Linear, nn.ModuleDict, nn.ModuleList,
    *DENSE_ACTIVATIONS.values(),
    Dropout, encoder.Embeddings, encoder.SelfAttention, encoder.FeedForward, encoder.TransformerBlock,
    encoder.DistilBert, MPNet,
    deberta.Embeddings, deberta.DisentangledAttention, deberta.DebertaBlock, deberta.Deberta,
    rotary.Embeddings, rotary.RotaryAttention, rotary.GatedFeedForward, rotary.RotaryBlock, rotary.RotaryEncoder,
    AttentionPooling, Dense, EachToken, LayerNorm, Normalize, Pooling, HiddenHead, LinearHead,
)  # fmt: skip
FORWARD = {kind: kind.forward for kind in KNOWN}  # as they are before anybody replaces one
HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
EVERYWHERE = [getattr(everywhere, f"_global{hooks}") for hooks in HOOKS]
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Settings that a forward pass in eval mode does not use
TRAINING_ONLY = frozenset({"p", "dropout", "padding_idx", "scale_grad_by_freq", "sparse"})


Compare = Callable[[nn.Module, nn.Module], Iterator[str]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where a module is not what is understood, and what it is instead."""

    name: str  # of the part, within the module
    what: str
    module: nn.Module  # the part
    again: Callable[[], str]  # says what it is instead by now

    def __str__(self) -> str:
        return f"{self.name or 'it'} {self.what}"

    def persists(self, root: nn.Module) -> bool:
        """Whether the part is still in a module, as it was found: then there is no need to look at the others."""
        try:
            return root.get_submodule(self.name) is self.module and self.again() == self.what
        except AttributeError:
            return False


def called(module: nn.Module) -> str:
    """The full name of a module's type."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def difference(module: nn.Module, expected: nn.Module, of: Compare | None = None, name: str = "") -> Difference | None:
    """The first part in which a module differs from the expected one, by default in what it is or in what it does."""
    again = partial(first, of or differences, module, expected)
    if what := again():
        return Difference(name, what, module, again)
    for child, part in expected._modules.items():
        own, inner = module._modules[child], f"{name}.{child}" if name else child
        if part is not None and own is not None and (found := difference(own, part, of, inner)):
            return found
    return None


def foreign(module: nn.Module) -> Difference | None:
    """The first part that is of no known type."""
    return next((unknown(part, name) for name, part in module.named_modules() if type(part) not in FORWARD), None)


def unknown(module: nn.Module, name: str = "") -> Difference:
    """That there is nothing to compare a module with."""
    what = f"is a {called(module)}, of which no program is known"
    return Difference(name, what, module, lambda: what)


def first(of: Compare, module: nn.Module, expected: nn.Module) -> str:
    """In what a module itself, its parts aside, differs from the expected one; nothing where it does not."""
    return next(of(module, expected), "")


def differences(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    yield from made_otherwise(module, expected)
    yield from run_otherwise(module, expected)


def made_otherwise(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    """What a config and a file of weights would not bring back."""
    kind, has, settings = type(expected), vars(module), vars(expected)
    if type(module) is not kind:
        yield f"is a {called(module)}, not a {kind.__name__}"
        return
    for name in sorted(settings.keys() - OF_EVERY_MODULE - TRAINING_ONLY):
        if name not in has or not same(has[name], settings[name]):
            yield f"has another {name}"
    for name in sorted(has.keys() - settings.keys()):
        if hasattr(expected, name):
            yield f"has a {name} of its own"
    for kinds in ("_modules", "_parameters", "_buffers"):
        if has[kinds].keys() != settings[kinds].keys():
            yield f"holds {', '.join(has[kinds]) or 'nothing'}, not {', '.join(settings[kinds]) or 'nothing'}"
        elif any((has[kinds][name] is None) != (part is None) for name, part in settings[kinds].items()):
            yield "lacks a part"
    for name, expected_tensor in tensors(expected).items():
        if (tensor := tensors(module).get(name)) is not None and tensor.shape != expected_tensor.shape:
            yield f"has a {name} of another shape, {tuple(tensor.shape)}"


def run_otherwise(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    """What stands between a module's weights and what a call of it gives."""
    kind = type(expected)
    if kind not in FORWARD or kind.forward is not FORWARD[kind]:
        yield "has a class whose forward was replaced"
    if what := hooked(module):
        yield what
    for name, tensor in tensors(module).items():
        if type(tensor) not in (nn.Parameter, Tensor):
            yield f"has a {name} that is a {type(tensor).__name__}"
        elif tensor.dtype != torch.float32:
            held = str(tensor.dtype).removeprefix("torch.")
            yield f"has a {name} of {held}, not float32 (precision='bf16' where it is loaded computes in less)"
        elif tensor.layout != torch.strided or tensor.device.type not in ("cpu", "cuda"):
            yield f"has a {name} on {tensor.device}, {str(tensor.layout).removeprefix('torch.')}"


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers."""
    found = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def hooked(module: nn.Module) -> str:
    """What stands in the way of calling a module's own forward; nothing where nothing does."""
    if any(EVERYWHERE):
        return "has the hooks of all modules"
    found = [what for hooks, what in HOOKS.items() if vars(module)[hooks]]
    found += ["a forward of its own"] if "forward" in vars(module) else []
    return f"has {found[0]}" if found else ""


def same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))
