"""Making folders as others make them: weights in shards, other names, other tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def rename_tensors(folder: Path, new: Callable[[str], str]) -> None:
    """Give each tensor of model.safetensors another name."""
    path = folder / "model.safetensors"
    tensors = {new(name): tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def older_norms(name: str) -> str:
    """LayerNorm's parameters as BERT's first checkpoints call them."""
    return re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{dict(weight='gamma', bias='beta')[m[1]]}", name)


def split_in_shards(folder: Path, shards: int = 2) -> list[Path]:
    """model.safetensors in as many files, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    places = {name: names[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in names:
        part = {name: tensors[name].clone() for name, place in places.items() if place == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [folder / name for name in names]
