"""Training of every family: the gradients of a plain loop in float64, and the same bits on any number of threads."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import WORDS, randomized
from tokenizers import Tokenizer
from training.ranks import ALL, small_shares
from training.test_pairs import dataset

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.model.config import FULL, SLIDING, DebertaConfig, EncoderConfig, RotaryConfig
from mtl.model.deberta import Deberta
from mtl.model.encoder import DistilBert
from mtl.model.interface import Encoder
from mtl.model.mpnet import MPNet
from mtl.model.rotary import RotaryEncoder
from mtl.training.forward import Cache, Forward
from mtl.training.gradients import divide
from mtl.training.recipe import Recipe, Training
from mtl.training.run import Run, prepare
from mtl.training.threads import computing

SHAPE = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "n_layers": 2, "n_heads": 2, "dim": 36}
SHAPE |= {"hidden_dim": 40, "dropout": 0.2}
DROPPED = SHAPE | {"attention_dropout": 0.1}
KEPT = SHAPE | {"dropout": 0.0, "attention_dropout": 0.0}
DISTANCES = {"position_buckets": 6, "max_relative_positions": 16}
FAMILIES: dict[str, Callable[[], Encoder]] = {
    "distilbert": lambda: DistilBert(EncoderConfig(**DROPPED, sinusoidal_pos_embds=True)),
    "electra": lambda: DistilBert(EncoderConfig(**KEPT, embedding_dim=24)),
    "roberta": lambda: DistilBert(EncoderConfig(**DROPPED, padding=1)),
    "mpnet": lambda: MPNet(EncoderConfig(**DROPPED, padding=1)),
    "mpnet without dropout": lambda: MPNet(EncoderConfig(**KEPT)),
    "modernbert": lambda: RotaryEncoder(RotaryConfig(**SHAPE, layer_types=(FULL, SLIDING), local_attention=6)),
    "gte": lambda: RotaryEncoder(RotaryConfig(**DROPPED, pre_norm=False, norm_bias=True, attention_bias=True)),
    "deberta": lambda: Deberta(DebertaConfig(**DROPPED, **DISTANCES)),
    "deberta without dropout": lambda: Deberta(DebertaConfig(**KEPT, **DISTANCES, share_att_key=False)),
}


def run_of(family: str, tokenizer: Tokenizer, folder: Path, **settings: object) -> Run:
    """A run whose every step is a window of all kinds of task."""
    embedder = SentenceEncoder.from_checkpoint(Checkpoint(randomized(FAMILIES[family]()), tokenizer, 16))
    torch.manual_seed(0)
    model, training = MultiTaskModel(embedder, ALL), Training(epochs=1, batch_size=13, accumulate=len(ALL), **settings)
    return Run(prepare(Recipe("", ALL, training), model, dataset(*ALL, dim=SHAPE["dim"])), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_window(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Measured: within 8e-7 of the largest."""
    run = run_of(family, tokenizer, tmp_path)
    with run.training(), small_shares():
        window, found = run.window(1), []
        for threads in (1, 3):
            objective = run.objective(window, 1)
            with computing(threads) as mapped:
                found.append(run.gradients(window, objective, mapped))
    (losses, gradients), (again, others) = found
    assert losses == again
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(gradients, others, strict=True))

    model = copy.deepcopy(run.model).double().train()
    forward, total = Forward(model, run.data["train"], run.phase(1), Cache(0)), torch.zeros(())
    (pieces,) = divide(window, run.data["train"], 1, 10**6, (run.recipe.training.seed, 0))
    for task, spec in model.tasks.items():
        own = [piece for piece in pieces if piece.task == task]
        targets = torch.cat([piece.targets for piece in own])
        outputs = torch.cat([forward(piece) for piece in own])
        loss, count = spec.criterion(outputs, targets.double() if targets.is_floating_point() else targets)
        total = total + loss / count
        assert losses[task] == pytest.approx(float(loss.detach() / count), rel=1e-4)
    named = dict(model.named_parameters())
    exact = torch.autograd.grad(total, [named[name] for name, _ in run.parameters()], allow_unused=True)
    largest = max(gradient.abs().max() for gradient in exact if gradient is not None)
    for i, (one, other) in enumerate(zip(gradients, exact, strict=True)):
        if one is None or other is None:
            assert one is other
        else:
            assert (one - (other[objective.words] if i == objective.of_words else other)).abs().max() < 1e-5 * largest


def test_gradients_in_bf16_follow_no_other_thread(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Any thread that leaves autocast empties a cache of all threads; DeBERTa uses weights twice."""
    run, found = run_of("deberta", tokenizer, tmp_path, precision="bf16"), []
    with run.training():
        window = run.window(1)
        for emptied in (False, True):
            for part in run.model.modules() if emptied else ():
                part.register_forward_pre_hook(lambda *_: torch.clear_autocast_cache())
            found.append(run.gradients(window, run.objective(window, 1)).gradients)
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(*found, strict=True))
