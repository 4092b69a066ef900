"""Makes what the peers need of a model folder: ONNX in fp32 and int8, and CTranslate2's format.

python -m benchmarks.export FOLDER OUTPUT
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Hidden(nn.Module):
    """transformers' model, giving the last hidden state alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(folder: str, output: Path) -> None:
    from ctranslate2.converters import TransformersConverter
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    output.mkdir(parents=True, exist_ok=True)
    model = Hidden(AutoModel.from_pretrained(folder, attn_implementation="sdpa")).eval()
    ids = torch.randint(1000, 2000, (2, 16))
    dims = {0: torch.export.Dim("texts", min=1, max=4096), 1: torch.export.Dim("length", min=2, max=512)}
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        model, (ids, torch.ones_like(ids)), str(output / "model.onnx"), input_names=names, output_names=["hidden"],
        dynamic_shapes=dict.fromkeys(names, dims), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    quantize_dynamic(str(output / "model.onnx"), str(output / "model-int8.onnx"), weight_type=QuantType.QInt8)
    TransformersConverter(folder).convert(str(output / "ct2"), force=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    export(sys.argv[1], Path(sys.argv[2]))
