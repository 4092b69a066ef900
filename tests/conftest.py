"""What several test files share: the real small model, and tiny random ones."""

import atexit
import dataclasses
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

# Threads that wait for each other's part of an operation sleep instead of spinning: beside a busy process, a test of
# many small operations is six times as fast. OpenMP reads it once, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.checkpoints.tokenizer import wordpiece
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert


def own_cache() -> None:
    """Have this process and its children keep what they verified in a folder of their own. Other programs' caches stay:
    fonts, browsers, wheels."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(tempfile.mkdtemp(prefix="mtl-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in users.iterdir() if users.is_dir() else ():
        if path.name != "mtl":
            (folder / path.name).symlink_to(path)
    os.environ["XDG_CACHE_HOME"] = str(folder)


own_cache()

# The same draws each time, so that a run says something of a change alone; --hypothesis-profile default draws others
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDENS = Path(__file__).parent / "goldens"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefg")]


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2 from the wheel that `make test` installs."""
    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """BERT's tokenizer over letters."""
    (tmp_path / "letters.txt").write_text("\n".join(WORDS) + "\n")
    return wordpiece(tmp_path / "letters.txt", {})


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with every parameter drawn anew, LayerNorm's and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def saved_tasks(model: MultiTaskModel) -> list[dict]:
    """A model's tasks as its folder has them."""
    return [task.as_saved() for task in model.tasks.values()]


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    """A tiny random model: two blocks, three heads, 12 dimensions, mean pooling."""
    config = EncoderConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, n_layers=2, n_heads=3, dim=12, hidden_dim=20
    )
    return Checkpoint(randomized(DistilBert(config)), tokenizer, 16)


@pytest.fixture
def tiny(checkpoint: Checkpoint) -> SentenceEncoder:
    return SentenceEncoder.from_checkpoint(checkpoint)


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The tiny model as a folder."""
    save(checkpoint, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Changes fields of a JSON file; None removes one."""

    def edit(path: Path, **fields: object) -> None:
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


@dataclasses.dataclass
class Golden:
    config: dict
    weights: dict[str, Tensor]
    ids: Tensor
    mask: Tensor
    hidden: Tensor
    logits: Tensor | None  # of a sequence classifier


def golden(name: str) -> Golden:
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        config = json.loads(file.metadata()["config"])
    ids, mask, hidden = (tensors.pop(key) for key in ("ids", "mask", "hidden"))
    logits = tensors.pop("logits", None)
    return Golden(config, tensors, ids, mask, hidden, logits)
