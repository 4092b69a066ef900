"""How a model is computed is not what it is.

The float32 parameters are the one truth: they are trained, saved and exported. What inference computes with is made
from them: the same tree of modules, in eval mode, with its linear layers in another form (linear.py, int8.py).
``Forms`` makes it at first use, again when the parameters have changed, and drops it in training.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mtl.model.encoder import SelfAttention
from mtl.model.linear import Joined, Packed, has_packed

M = TypeVar("M", bound=nn.Module)
Replace = Callable[[nn.Module], nn.Module | None]
MADV_PAGEOUT = 21  # linux/mman.h, since Linux 5.4
SAMPLE = 4  # values of each weight that are compared


def rebuilt(module: M, replace: Replace = lambda module: None) -> M:
    """The same tree of modules in eval mode, but for what ``replace`` gives instead; tensors are shared."""
    new = copy.copy(module)
    new._parameters = dict(module._parameters)
    modules: dict[str, nn.Module | None] = {
        name: None if part is None else replace(part) or rebuilt(part, replace)
        for name, part in module._modules.items()
    }
    new._modules = modules
    new.training = False
    return new


def joined(attention: SelfAttention, form: Callable[[Tensor, Tensor], nn.Module]) -> nn.Module:
    """A form of the layers for q, k and v, which read the same input, as one."""
    layers = (attention.q_lin, attention.k_lin, attention.v_lin)
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return Joined(form(weight, bias), len(layers))


def with_attention(attention: SelfAttention, qkv: nn.Module, out: nn.Module) -> SelfAttention:
    """A self-attention with these layers."""
    new = rebuilt(attention)
    new._modules |= dict.fromkeys(("q_lin", "k_lin", "v_lin"), qkv) | {"out_lin": out}
    return new


def release(module: nn.Module) -> None:
    """Tell Linux that a module's memory-mapped weights need not stay in memory; what reads them reads the file again.

    Nothing is lost by it, whatever the memory is.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    for weight in module.parameters():
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (weight.data_ptr() + weight.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if advise and size > 0 and weight.device.type == "cpu":
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_PAGEOUT)


@torch.no_grad()
def packed(module: M, dtype: torch.dtype = torch.float32, mapped: bool = False) -> M:
    """A module in a number format, with prepacked linear layers where there are such.

    ``mapped`` says that the weights are mapped from a file, and need not be in memory twice.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    prepack = on_cpu and has_packed(dtype)

    def cast(x: Tensor | None) -> Tensor | None:
        return x.detach().to(dtype) if x is not None and x.is_floating_point() else x

    def layer(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return Packed(weight.detach().to(dtype), cast(bias))

    def replace(part: nn.Module) -> nn.Module | None:
        if not prepack or not isinstance(part, (SelfAttention, nn.Linear)):
            return None
        if isinstance(part, nn.Linear):
            new: nn.Module = layer(part.weight, part.bias)
        else:
            new = with_attention(part, joined(part, layer), layer(part.out_lin.weight, part.out_lin.bias))
        if mapped:
            release(part)
        return new

    form = rebuilt(module, replace)
    for part in form.modules():
        part._parameters = {name: cast(parameter) for name, parameter in part._parameters.items()}  # type: ignore[misc]
    return form


class Watched:
    """What a form was made of, so that it can be seen whether that has changed since.

    A tensor that is written to counts a version, one that is replaced is another object. Writing through ``.data``
    leaves neither trace, so that some values of each weight are compared too.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self.children = [(p._modules, name, child) for p in parts for name, child in p._modules.items()]
        self.counts = [(where, len(where)) for p in parts for where in (p._modules, p._parameters)]
        tensors = [(p._parameters, name, x) for p in parts for name, x in p._parameters.items() if x is not None]
        self.tensors = [(where, name, x, version(x), x.data_ptr()) for where, name, x in tensors]
        weights = [x.detach().flatten() for _, _, x in tensors if x.ndim == 2 and x.device.type == "cpu"]
        self.samples = [x[:: max(1, len(x) // SAMPLE)].numpy() for x in weights if x.dtype == torch.float32]
        self.values = [sample.tobytes() for sample in self.samples]

    def unchanged(self) -> bool:
        return (
            all(where.get(name) is child for where, name, child in self.children)
            and all(len(where) == count for where, count in self.counts)
            and all(
                where.get(name) is x and version(x) == count and x.data_ptr() == address
                for where, name, x, count, address in self.tensors
            )
            and all(sample.tobytes() == value for sample, value in zip(self.samples, self.values, strict=True))
        )


def version(x: Tensor) -> int:
    """How often a tensor was written to; what inference mode has made does not count it."""
    return 0 if x.is_inference() else x._version


class Forms(Generic[M]):
    """The form that a module is computed in. A copy, pickled or not, starts with none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.form: M | None = None
        self.watched: Watched | None = None
        self.key: Any = None

    def of(self, module: M, key: Any, make: Callable[[], M]) -> M:
        """The module's form; ``key`` is what else decides it, such as the number format."""
        with self.lock:
            if self.form is None or self.watched is None or self.key != key or not self.watched.unchanged():
                self.form = None  # its memory goes before that of the next comes
                self.watched, self.key = Watched(module), key
                self.form = make()
            return self.form

    def clear(self) -> None:
        with self.lock:
            self.form = self.watched = None

    def __reduce__(self) -> tuple[type[Forms[M]], tuple[()]]:
        return Forms, ()
