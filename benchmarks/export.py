"""Makes what the peers need of a model folder: ONNX plain, fused and in int8, and CTranslate2's format.

python -m benchmarks.export FOLDER OUTPUT
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import cpu_fields, flags, native_int8

NAMES = ["input_ids", "attention_mask"]


class Means(nn.Module):
    """transformers' model and the mean of the kept hidden states, so that only (texts, dim) leaves the graph."""

    def __init__(self, folder: str, attention: str | None) -> None:
        super().__init__()
        from transformers import AutoModel

        self.model: Any = AutoModel.from_pretrained(folder, attn_implementation=attention)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)


def note(path: Path, said: str) -> None:
    """For who compares: what a peer does not do with this model."""
    with (path.parent / "notes.txt").open("a", encoding="utf-8") as file:
        file.write(f"{said}\n")


def plain(folder: str, path: Path) -> None:
    """The graph as torch exports it; OpenVINO fuses it itself."""
    ids = torch.randint(1000, 2000, (2, 16))
    dims = {0: torch.export.Dim("texts", min=1, max=4096), 1: torch.export.Dim("length", min=2, max=512)}
    torch.onnx.export(
        Means(folder, None), (ids, torch.ones_like(ids)), str(path), input_names=NAMES, output_names=["means"],
        dynamic_shapes=dict.fromkeys(NAMES, dims), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def fused(folder: str, path: Path) -> None:
    """The graph with onnxruntime's fused attention, LayerNorm and GELU, which its optimizer finds in this form.

    Of attention with a bias (MPNet) it fuses none, which is said.
    """
    from onnxruntime.transformers.optimizer import optimize_model

    ids = torch.randint(1000, 2000, (2, 16))
    model = Means(folder, "eager")
    torch.onnx.export(
        model, (ids, torch.ones_like(ids)), str(path), input_names=NAMES, output_names=["means"],
        dynamic_axes={name: {0: "texts", 1: "length"} for name in NAMES}, dynamo=False, opset_version=17,
    )  # fmt: skip
    config = model.model.config
    heads, dim = config.num_attention_heads, config.hidden_size
    optimized = optimize_model(str(path), model_type="bert", num_heads=heads, hidden_size=dim, opt_level=0)
    attentions = optimized.get_fused_operator_statistics()["Attention"]
    if attentions != config.num_hidden_layers:
        told = f"onnxruntime fused {attentions} attentions of {config.num_hidden_layers}"
        if not hasattr(config, "relative_attention_num_buckets"):  # else of a bias, which it does not fuse
            raise SystemExit(told)
        note(path, told)
    optimized.save_model_to_file(str(path))


def int8(source: Path, path: Path) -> None:
    """Weights in 8 bits, a scale per row; 7 where the processor's products would overflow, as onnxruntime advises."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source), str(path), weight_type=QuantType.QInt8, per_channel=True,
        reduce_range=not native_int8(flags(cpu_fields())), extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip


def export(folder: str, output: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    output.mkdir(parents=True, exist_ok=True)
    plain(folder, output / "model.onnx")
    fused(folder, output / "fused.onnx")
    int8(output / "fused.onnx", output / "int8.onnx")
    try:
        TransformersConverter(folder).convert(str(output / "ct2"), force=True)
    except ValueError as error:  # a family that it has not
        note(output / "ct2", f"CTranslate2: {error}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    export(sys.argv[1], Path(sys.argv[2]))
