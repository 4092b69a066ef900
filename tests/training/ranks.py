"""What torchrun starts for test_distributed.py: small runs, one after another, by all processes together.

torchrun ... ranks.py FOLDER SCENARIO...
"""

import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from conftest import WORDS, randomized
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import Tensor
from training.test_loop import SETS, VALUE, A, B, build
from training.test_pairs import NEGATIVES, SIMILAR, SIZES, STUDENT, dataset

from mtl.checkpoints.load import Checkpoint
from mtl.errors import MtlError
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import Dense
from mtl.tasks.spec import TaskSpec
from mtl.training import distributed, gradients
from mtl.training.distributed import ALONE, Processes, joined
from mtl.training.loop import train
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log, NoLog
from mtl.training.run import Run, prepare

PAIRS = {"alike": SIMILAR, "belong": NEGATIVES, "learn": STUDENT, "sizes": SIZES}
JUDGE = dataclasses.replace(B, name="judge", text_field=("a", "b"), joint=True, pooling=("cls",))
ALL = (A, B, SETS, VALUE, *(dataclasses.replace(task, name=name) for name, task in PAIRS.items()))
SOME_HELD = (1, "none", 2, "encoder", "none", 0, 1, 1)
ALL_HELD = (1, 2, "encoder", 1, 1, 1, 1, 1)
STEPS = 50
SETTINGS = {"epochs": 20, "batch_size": 4, "accumulate": 4, "learning_rate": 1e-4, "head_learning_rate": 1e-4}


def holding(depths: tuple) -> tuple[TaskSpec, ...]:
    return tuple(dataclasses.replace(task, freeze=depth) for task, depth in zip(ALL, depths, strict=True))


SCENARIOS: dict[str, tuple[tuple[TaskSpec, ...], dict]] = {
    "mixed": (
        holding(SOME_HELD),
        SETTINGS | {"loss_weights": "uncertainty", "clip": 0.5, "micro_tokens": 40},
    ),
    "prefix": (holding(ALL_HELD), SETTINGS),
    "bf16": (ALL, SETTINGS | {"precision": "bf16"}),
    "lone rows": ((A, VALUE), SETTINGS | {"batch_size": 1, "accumulate": 1}),
    "pairs and texts": ((A, JUDGE), SETTINGS | {"accumulate": 1, "weight_decay": 0.5}),
    "not finite": ((A, VALUE), SETTINGS),
    "silent": ((A, VALUE), SETTINGS),
    "held layers": (
        (SIMILAR, dataclasses.replace(NEGATIVES, name="belong", freeze_head=True)),
        SETTINGS | {"accumulate": 1, "weight_decay": 0.0},
    ),
}


def run_of(scenario: str, folder: Path, ranks: Processes = ALONE) -> Run:
    """A run of a tiny model, measured on the dev data of two of its tasks."""
    tasks, settings = SCENARIOS[scenario]
    shape = {"max_position_embeddings": 16, "n_layers": 2, "n_heads": 3, "dim": 12, "hidden_dim": 20}
    config = EncoderConfig(len(WORDS), **shape, segments=1 + any(task.handler.joint for task in tasks))
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    torch.manual_seed(0)
    after = (Dense(12, 12),) if scenario == "held layers" else ()
    model = build(Checkpoint(randomized(DistilBert(config)), tokenizer, 16, after=after), tasks)
    data = dataset(*tasks)
    for rows in (data["train"][task.name].rows for task in tasks if task.handler.joint):
        rows[:] = [[*row[:2], *(~word for word in row[2:])] for row in rows]  # a second text
    data["dev"] = {name: rows for name, rows in data["dev"].items() if name in ("topic", "alike")}
    if scenario == "not finite":
        data["train"]["score"].targets[3] = math.nan
    return Run(prepare(Recipe("tiny", tasks, Training(**settings)), model, data), folder, ranks)


@contextmanager
def small_shares() -> Iterator[None]:
    """Within it, windows as small as these have several shares and pieces."""
    before = gradients.SHARE_TOKENS, gradients.PIECE_TOKENS["cpu"]
    gradients.SHARE_TOKENS, gradients.PIECE_TOKENS["cpu"] = 12, 40
    try:
        yield
    finally:
        gradients.SHARE_TOKENS, gradients.PIECE_TOKENS["cpu"] = before


def outcome(scenario: str, ranks: Processes = ALONE, threads: int = 1) -> tuple[list[dict], Run]:
    """What the log has after some steps, and the run."""
    with tempfile.TemporaryDirectory() as name, small_shares():
        run = run_of(scenario, Path(name), ranks)
        log = Log(run.folder) if ranks.leads else NoLog()
        assert train(run, log, threads, until=STEPS)
        log.close()
    return [*log.steps, *log.epochs] if ranks.leads else [], run


def tensors_of(run: Run) -> dict[str, Tensor]:
    """Weights, and AdamW's moments."""
    moments = {f"moment of {name}": run.state(p)["exp_avg"] for name, p in run.parameters()}
    return {name: x.contiguous().clone() for name, x in {**run.tensors(), **moments}.items()}


def main() -> None:
    folder, *scenarios = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.SILENCE = timedelta(seconds=3) if "silent" in scenarios else distributed.SILENCE
    with joined(torch.device("cpu")) as ranks:
        for scenario in scenarios:
            result = Path(folder) / scenario
            if scenario == "silent" and ranks.rank == 1:
                time.sleep(6)
                os._exit(0)
            try:
                records, run = outcome(scenario, ranks)
            except MtlError as error:
                result.with_suffix(f".{ranks.rank}.txt").write_text(str(error))
                continue
            assert len(set(ranks.all_gather(run.fingerprint))) == 1  # all have the same weights, to the bit
            assert len({*ranks.all_gather(repr(run.best))}) == 1
            if ranks.leads:
                result.with_suffix(".json").write_text(json.dumps(records))
                save_file(tensors_of(run), result.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
