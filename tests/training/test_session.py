"""Training as a user meets it: the command, its files, stopping and going on."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import Done, mtl

from mtl import MultiTaskModel
from mtl.training.checkpoint import saved
from mtl.training.session import train

__all__ = ["mtl"]  # the fixture

RECIPE = """
model = "tiny"

[training]
epochs = 3
batch_size = 4
learning_rate = 1e-3
save_steps = 1

[[task]]
name = "vowel"
labels = ["yes", "no"]
train = "vowel.jsonl"
dev = "vowel.jsonl"
test = "vowel.jsonl"

[[task]]
name = "length"
kind = "regression"
train = "length.csv"
dev = "length.csv"
freeze = 1

[[task]]
name = "alike"
kind = "similarity"
train = "alike.tsv"
dev = "alike.tsv"
text_field = ["one", "other"]
label_field = "score"

[[task]]
name = "belongs"
kind = "contrastive"
train = "alike.tsv"
dev = "alike.tsv"
text_field = ["one", "other"]

[[task]]
name = "student"
kind = "distillation"
train = "vowel.jsonl"
teacher = "tiny"
matryoshka = [12, 4]

[[task]]
name = "same"
kind = "few-shot"
labels = ["yes", "no"]
train = "vowel.jsonl"
pairs = 1
"""


@pytest.fixture
def recipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe beside the tiny model, with data of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where a teacher's vectors are remembered
    generator = random.Random(1)
    texts = [" ".join(generator.choices("abcdefghijklmnop", k=generator.randint(1, 9))) for _ in range(30)]
    rows = [{"text": text, "label": "yes" if set(text) & set("aeo") else "no"} for text in texts]
    (tmp_path / "vowel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "length.csv").write_text("text,label\n" + "".join(f"{text},{len(text) / 10}\n" for text in texts))
    pairs = [(one, other, len(set(one) & set(other))) for one, other in zip(texts[:14], texts[14:28], strict=True)]
    rows_of_pairs = "".join(f"{one}\t{other}\t{score}\n" for one, other, score in pairs)
    (tmp_path / "alike.tsv").write_text("one\tother\tscore\n" + rows_of_pairs)
    path = tmp_path / "letters.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def short(recipe: Path) -> Path:
    """The same, where one epoch is enough."""
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 1").replace("save_steps = 1\n", ""))
    return recipe


def process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mtl", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_train_evaluate_predict(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = mtl("train", recipe, "--output", run)
    assert done.returncode == 0, done.stderr
    expectations = ["learning_rate=0.001", "embeddings + 1 of 2 blocks", "epoch 3  loss alike", "macro_f1"]
    for expected in [*expectations, "spearman", "true \\ predicted", "best epoch"]:
        assert expected in done.stdout, expected
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "vectors.png").read_bytes().startswith(b"\x89PNG")
    picture = run.parent / "vectors.svg"
    done = mtl("evaluate", "--model", run, "--recipe", recipe, "--split", "dev", "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_text().startswith("<?xml")
    assert "vowel" in done.stdout
    done = mtl("predict", "--model", run, "a b", "c", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["tasks"].keys() == {"vowel", "length", "same"}
    assert abs(sum(rows[0]["tasks"]["vowel"]["scores"].values()) - 1) < 1e-6
    assert len(rows[1]["embedding"]) == 12
    done = mtl("predict", "--model", run, "a b")
    assert "embedding (12,)" in done.stdout
    assert "probability" in done.stdout
    done = mtl("train", recipe, "--output", run)
    assert done.returncode == 1
    assert "is not empty; go on there with --resume" in done.stderr
    done = mtl("train", recipe, "--output", run, "--resume")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_kill_at_any_moment_and_go_on(recipe: Path, tmp_path: Path) -> None:
    """kill -9 between and during saves; the end is the same to the bit."""
    whole = process("train", recipe, "--output", tmp_path / "whole", "--threads", 1)
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    run, generator = tmp_path / "killed", random.Random(4)
    killed = 0
    for attempt in range(12):
        resume = ["--resume"] if run.exists() else []
        trained = process("train", recipe, "--output", run, "--threads", 1, *resume)
        before = len(saved(run / "checkpoints")) and int(saved(run / "checkpoints")[0].name[5:])
        wanted = before + generator.randint(2, 9) if attempt < 3 else 10**9
        while trained.poll() is None:
            newest = saved(run / "checkpoints")
            if newest and int(newest[0].name[5:]) >= wanted:
                time.sleep(generator.random() * 0.02)
                trained.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
        _, err = trained.communicate(timeout=120)
        if trained.returncode == 0:
            break
        assert trained.returncode == -signal.SIGKILL, err
    assert killed >= 2
    assert trained.returncode == 0
    for name in ("model/model.safetensors", "model/tasks.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_interrupt_saves_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 3000"))
    run = tmp_path / "run"
    trained = process("train", recipe, "--output", run)
    deadline = time.monotonic() + 60
    while len(saved(run / "checkpoints")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    trained.send_signal(signal.SIGINT)
    _, err = trained.communicate(timeout=60)
    assert trained.returncode == 130, err
    assert f"go on with: mtl train {recipe} --output {run} --resume" in err
    assert "Traceback" not in err
    step = int(err.split("stopped after step ")[1].split()[0])
    assert saved(run / "checkpoints")[0].name == f"step-{step:08d}"


def test_mistakes_are_one_line(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for before, after, message in [
        ("epochs = 3", "epoch = 3", "letters.toml, line 5: 'epoch' is unknown"),
        ('labels = ["yes", "no"]', 'labels = ["yes", "nope"]', "vowel.jsonl, line "),
        ('train = "vowel.jsonl"', 'train = "absent.jsonl"', "absent.jsonl cannot be read: No such file"),
        ("freeze = 1", "freeze = 7", "task 'length': freeze is 7; the encoder has 2 blocks"),
        ("freeze = 1", 'freeze = "encoder"\nfreeze_head = true', "nothing is left to train"),
        ("save_steps = 1", 'best = "vowel.f1"', "best is 'vowel.f1'; expected mean, vowel.accuracy"),
        ("save_steps = 1", "max_length = 99", "max_length is 99; expected at most 16, the encoder's positions"),
        ('model = "tiny"', 'model = "tinny"', "no model is called 'tinny'"),
        (
            '["yes", "no"]',
            '["yes"]',
            "letters.toml, line 12: labels are ['yes']; expected at least 2 for a single-label",
        ),
    ]:
        recipe.write_text(RECIPE.replace(before, after))
        done = mtl("train", recipe, "--output", run)
        assert done.returncode == 1, after
        assert message in done.stderr
        assert done.stderr.startswith("error: ") or "note" in done.stderr or "hash" in done.stderr
        assert not run.exists(), after
    recipe.write_text(RECIPE)
    assert "holds no run to go on with" in mtl("train", recipe, "--output", run, "--resume").stderr
    (tmp_path / "empty").mkdir()  # as after a kill before the first checkpoint
    assert mtl("train", recipe, "--output", tmp_path / "empty", "--resume").returncode == 0
    assert "is no recipe" in mtl("train", "nothing").stderr
    assert mtl("predict", "a").returncode == 2
    (tmp_path / "file").write_text("")
    assert "exists and is not empty" in mtl("train", recipe, "--output", tmp_path / "file").stderr
    assert "cannot be written" in mtl("train", recipe, "--output", tmp_path / "file" / "run").stderr


def test_evaluate_refuses_another_recipe(mtl: Callable[..., Done], short: Path, tmp_path: Path) -> None:
    assert mtl("train", short, "--output", tmp_path / "run").returncode == 0
    short.write_text(short.read_text().replace('name = "vowel"', 'name = "vowels"'))
    done = mtl("evaluate", "--model", tmp_path / "run", "--recipe", short)
    assert done.returncode == 1
    assert "the model has no task 'vowels' with labels ['yes', 'no']; it has vowel (yes, no)" in done.stderr


def test_resume_with_another_recipe(mtl: Callable[..., Done], short: Path, tmp_path: Path) -> None:
    assert mtl("train", short, "--output", tmp_path / "run").returncode == 0
    short.write_text(short.read_text().replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    done = mtl("train", short, "--output", tmp_path / "run", "--resume")
    assert done.returncode == 1
    assert "is another run: training.learning_rate was 0.001, is 0.002; start one in another folder\n" in done.stderr


def test_training_leaves_the_pretrained_file_alone(mtl: Callable[..., Done], short: Path, tmp_path: Path) -> None:
    """Weights are memory-mapped: training writes to memory only."""
    before = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    assert mtl("train", short, "--output", tmp_path / "run").returncode == 0
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == before
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    original = load_file(tmp_path / "tiny" / "model.safetensors")
    assert not torch.equal(
        trained["transformer.layer.1.ffn.lin1.weight"], original["transformer.layer.1.ffn.lin1.weight"]
    )


def test_tensorboard(mtl: Callable[..., Done], short: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert mtl("train", short, "--output", tmp_path / "run", "--tensorboard").returncode == 0
    assert os.listdir(tmp_path / "run" / "tensorboard")


def test_a_run_beside_another_is_said(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    train(short)
    assert "is there already" not in caplog.text
    train(short)
    assert f"runs/letters is there already; this run is {Path('runs', 'letters-2')}" in caplog.text


@pytest.mark.slow
def test_the_demo(mtl: Callable[..., Done], tmp_path: Path) -> None:
    """The bundled recipe on the real trunk: both heads learn."""
    done = mtl("train", "demo", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    model = MultiTaskModel.from_pretrained(tmp_path / "demo" / "model")
    found = model.predict(["Fry the garlic in butter.", "The train to Rome was late.", "The server needs more memory."])
    assert found.labels["topic"] == ["food", "travel", "technology"]
    assert model.predict(["What a wonderful, moving film.", "A boring, awful mess."]).labels["sentiment"] == [
        "positive",
        "negative",
    ]


@pytest.mark.slow
def test_the_demo_of_pairs(mtl: Callable[..., Done], tmp_path: Path) -> None:
    """The bundled recipe finds more on held-out matters than the trunk that it starts from."""
    done = mtl("train", "demo-pairs", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = [
        [float(lines[lines.index(title) + 2].split()[1]) for title in (f"{split}, before training", split)]
        for split in ("dev", "test")
    ]
    assert found[0][1] > found[0][0] + 0.02  # measured: 0.650 to 0.707
    assert found[1][1] > found[1][0]  # and 0.714 to 0.725


def test_settings_that_come_through(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    """max_length is the saved model's, a metric of which less is better is shown as it is, patience needs dev data."""
    text = recipe.read_text().replace("[training]", '[training]\nmax_length = 4\nbest = "length.rmse"')
    recipe.write_text(text)
    done = mtl("train", recipe, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"best epoch: \d+ \(length.rmse \d", done.stdout)
    assert "note: student, same: no dev data, so no say in which epoch is the best" in done.stderr
    recipe.write_text(re.sub("^(dev|best) = .*\n", "", text, flags=re.MULTILINE).replace("epochs = 3", "patience = 1"))
    done = mtl("train", recipe, "--output", tmp_path / "blind")
    assert "note: patience is set, but no task has dev data to stop by" in done.stderr
    done = mtl("evaluate", "--model", tmp_path / "blind", "--recipe", recipe, "--split", "dev")
    assert "no task of the recipe names dev data; expected another split: train, test" in done.stderr
    done = mtl("evaluate", "--model", tmp_path / "run", "--recipe", tmp_path / "letters.toml", "--split", "train")
    assert done.returncode == 0, done.stderr
    assert MultiTaskModel.from_pretrained(tmp_path / "run").embedder.tokenizer.max_length == 4
