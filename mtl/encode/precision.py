"""The number formats that inference computes in, and which of them a device has."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mtl.encode.tokenizer import Tokenizer, filled
from mtl.errors import InputError, shown
from mtl.kernels.int8 import LEAST_COSINE, largest_weight
from mtl.kernels.linear import has_packed
from mtl.model.interface import Encoder

log = logging.getLogger("mtl")

Precision = Literal["fp32", "bf16", "fp16", "int8", "auto"]
CALIBRATION = Path(__file__).parents[1] / "kernels" / "calibration.txt"


def native_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are computed as such: AMX or AVX-512 with bf16 on a CPU, Ampere and later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and has_packed(torch.bfloat16) and native


def check_place(precision: str, device: torch.device) -> None:
    """Raise an InputError if a device does not compute in this format: where a model is loaded, and again where it was
    moved since."""
    if precision == "int8" and device.type != "cpu":
        raise InputError(f"precision is 'int8' and device {str(device)!r}; expected a CPU, or another precision")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16' and device 'cpu'; expected a GPU, or another precision")


def effective(precision: str, device: torch.device, int8_least_cosine: float = LEAST_COSINE) -> Precision:
    """The format that is meant, with "auto" decided; an InputError if it is unknown, or the device has not got it, or
    the least cosine of int8 is none."""
    if not isinstance(int8_least_cosine, (int, float)) or not -1 <= int8_least_cosine <= 1:
        raise InputError(f"int8_least_cosine is {shown(int8_least_cosine)}; expected a cosine, -1 to 1")
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    check_place(precision, device)
    if precision == "int8":
        largest_weight()  # raises where there is no kernel
    if precision == "bf16" and not native_bf16(device):
        log.warning("bf16 is not native to this processor and will be slow; precision='fp32' is faster")
    return precision  # type: ignore[return-value]


def number_format(precision: str, int8_least_cosine: float) -> dict[str, Any]:
    """What decides in which numbers a vector is computed: of int8 also the bar for which products stay in float32."""
    return {"precision": precision, **({"int8_least_cosine": int8_least_cosine} if precision == "int8" else {})}


def calibration_texts() -> list[str]:
    """The sentences on which the ranges of activations are measured."""
    return CALIBRATION.read_text(encoding="utf-8").splitlines()


def calibration_rows(tokenizer: Tokenizer, encoder: Encoder) -> list[list[int]]:
    """The token ids of these sentences, for an encoder that is computed in int8; an InputError if its weights are not
    float32."""
    dtype = encoder.words.weight.dtype
    if dtype != torch.float32:
        given = str(dtype).removeprefix("torch.")
        raise InputError(f"precision is 'int8' and the weights are {given}; expected float32, as model.float() gives")
    return filled(tokenizer(calibration_texts(), "truncate").rows)
