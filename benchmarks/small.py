"""A model that is quick, and whose vectors mean nothing: two random blocks behind all-MiniLM-L6-v2's tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mtl import SentenceEncoder
from mtl.checkpoints.save import save
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert


def save_small_model(folder: Path) -> Path:
    """The model as a folder, always with the same weights; 32 dimensions, texts of up to 128 tokens."""
    import torch

    published = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2").to_checkpoint()
    config = EncoderConfig(
        vocab_size=published.config.vocab_size, max_position_embeddings=128, n_layers=2, n_heads=2, dim=32,
        hidden_dim=64,
    )  # fmt: skip
    encoder, generator = DistilBert(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save(dataclasses.replace(published, encoder=encoder, max_length=128), folder)
    return folder
