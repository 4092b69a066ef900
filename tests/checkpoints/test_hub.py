"""Reference outputs A, B and C on the real DistilBERTs, from the hub or its local cache; skipped where neither is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtl import MultiTaskModel
from mtl.checkpoints.fetch import fetch
from mtl.checkpoints.load import load_encoder
from mtl.errors import WeightsError
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch

pytestmark = [pytest.mark.hub, pytest.mark.slow]


@pytest.fixture(scope="session")
def pretrained():
    """Fetches a model, or skips; after a first failure at once, since the hub's client tries for 20 s."""
    failures: list[str] = []

    def get(name: str) -> Path:
        try:
            if failures:
                raise WeightsError(failures[0])
            return fetch(name)
        except WeightsError as error:
            failures.append(str(error))
            pytest.skip(str(error))

    return get


@pytest.fixture(scope="session")
def distilbert(pretrained) -> DistilBert:
    return load_encoder(pretrained("distilbert-base-uncased"))[0]


def test_output_a(distilbert: DistilBert) -> None:
    """The first token is masked: the others keep their positions."""
    ids = torch.tensor([[0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]])
    mask = torch.tensor([[0] + [1] * 10])
    with torch.no_grad():
        hidden = distilbert(PackedBatch.from_padded(ids, mask))
    expected = [[-0.1639, 0.3299, 0.1648], [-0.1746, 0.3289, 0.1710], [-0.1884, 0.3357, 0.1810]]
    torch.testing.assert_close(hidden[:3, 1:4], torch.tensor(expected), atol=1e-4, rtol=0)


def test_output_b(distilbert: DistilBert) -> None:
    with torch.no_grad():
        hidden = distilbert(PackedBatch.pack([[0, 1, 2, 3, 4, 5]]))
    expected = [
        [0.19261885, -0.13732955, 0.4119799],
        [0.22150156, -0.07422661, 0.39037204],
        [0.22756018, -0.0896414, 0.3701467],
    ]
    torch.testing.assert_close(hidden[:3, :3], torch.tensor(expected), atol=1e-4, rtol=0)


def test_output_c(pretrained) -> None:
    """The published sentiment head, on its tokenizer rebuilt from vocab.txt."""
    model = MultiTaskModel.from_pretrained(pretrained("distilbert-base-uncased-finetuned-sst-2-english"))
    texts = [
        "I've been waiting for a HuggingFace course my whole life.",
        "I hate this so much!",
        "So have I!",
        "Python is great!",
    ]
    found = model.predict(texts)
    expected = [[-1.5607, 1.6123], [4.1692, -3.3464], [-3.6183, 3.9137], [-4.2745, 4.6111]]
    np.testing.assert_allclose(found.logits["classification"], expected, atol=1e-4, rtol=0)
    assert found.labels["classification"] == ["POSITIVE", "NEGATIVE", "POSITIVE", "POSITIVE"]
