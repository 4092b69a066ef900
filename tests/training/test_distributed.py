"""Training in several processes that torchrun starts: the same outcome as in one, through all that may happen."""

import json
import os
import shutil
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
from training.ranks import STEPS, outcome, tensors_of
from training.test_session import recipe

from mtl.training.checkpoint import saved

__all__ = ["mtl", "recipe"]  # fixtures

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
TO_THE_BIT = ("mixed", "held layers", "pairs and texts")
# A bias that softmax takes out again: its gradient is rounding alone, which AdamW scales up to whole steps
WITHOUT_EFFECT = ("attention.k_lin.bias", "pooling.score.bias")


def torchrun(processes: int, *arguments: object, options: tuple[object, ...] = ()) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, *options]
    command = [sys.executable, *map(str, launch), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def done(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What it wrote, once it has ended."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def said(err: str) -> list[str]:
    """What our processes had to say, without torchrun's own lines."""
    return [line for line in err.splitlines() if line.startswith(("error: ", "stopped ", "interrupted", "note: "))]


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, in their order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children if b"\0train\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def wait_for(path: Path, launcher: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while not path.exists() and launcher.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert path.exists(), launcher.communicate()


def compare(folder: Path, scenario: str, tolerances: tuple[float, float] = (0, 0)) -> None:
    """Losses, metrics and weights of several processes with those of one with two threads, after all steps."""
    records, run = outcome(scenario, threads=2)
    theirs = json.loads((folder / f"{scenario}.json").read_text())
    assert len(records) == len(theirs) > STEPS
    for one, other in zip(records, theirs, strict=True):
        if tolerances == (0, 0):
            assert one == other
        elif "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=0, abs=tolerances[0])
    tensors = load_file(folder / f"{scenario}.safetensors")
    for name, tensor in tensors_of(run).items():
        if tolerances == (0, 0):
            assert torch.equal(tensor, tensors[name]), name
        elif not name.endswith(WITHOUT_EFFECT):
            assert (tensor - tensors[name]).abs().max() <= tolerances[1], name


def test_two_processes_are_one(tmp_path: Path) -> None:
    """To the bit; then a loss that is NaN in one process."""
    done(torchrun(2, ROOT / "tests" / "training" / "ranks.py", tmp_path, *TO_THE_BIT, "not finite"))
    for scenario in TO_THE_BIT:
        compare(tmp_path, scenario)
    lines = [(tmp_path / f"not finite.{rank}.txt").read_text() for rank in (0, 1)]
    assert lines[0] == lines[1]
    assert lines[0].startswith("the loss of task 'score' is nan at step ")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    """With all kinds of task, prefixes remembered by each process, bf16, and windows of one row.

    To the bit, but for three, which add in another order. Measured then, over 50 steps at 1e-4: losses within 5e-7,
    weights within 4.5e-6. (At a rate of 0.01: 2e-6 and 1.3e-5.)
    """
    scenarios = ("mixed", "prefix", "bf16", "lone rows")
    done(torchrun(processes, ROOT / "tests" / "training" / "ranks.py", tmp_path, *scenarios))
    for scenario in scenarios:
        if processes != 3:
            compare(tmp_path, scenario)
        elif scenario != "bf16":
            compare(tmp_path, scenario, (1e-6, 1e-5))


@pytest.mark.slow
def test_a_silent_process_is_waited_for_a_while(tmp_path: Path) -> None:
    """Here three seconds, and a minute without the test."""
    torchrun(2, ROOT / "tests" / "training" / "ranks.py", tmp_path, "silent").communicate(timeout=120)
    line = (tmp_path / "silent.0.txt").read_text()
    assert line.startswith("another process died, or its machine cannot be reached (")
    assert "\n" not in line
    assert line.endswith("the last checkpoint is kept")


@pytest.mark.slow
def test_the_command(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    """Told to stop, it saves once, and goes on in one process; what it shows is shown once."""
    run = tmp_path / "run"
    launcher = torchrun(2, "-m", "mtl", "train", recipe, "--output", run)
    wait_for(run / "checkpoints" / "step-00000003", launcher)
    os.kill(ranks_of(launcher)[1], signal.SIGTERM)  # one of them is told
    out, err = done(launcher, 1)
    assert out.count("threads=") == 1
    stopped = [line for line in said(err) if line.startswith("stopped after step ")]
    step = int(stopped[0].split()[3])
    assert len(stopped) == 1
    assert said(err).count("interrupted") == 2
    assert saved(run / "checkpoints")[0].name == f"step-{step:08d}"
    again = mtl("train", recipe, "--output", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert f"going on after step {step}" in again.stdout
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, records[-1]["step"] + 1))
    assert (run / "model" / "config.json").exists()


def differing(recipe: Path, change: Callable[[Path], object]) -> list[str]:
    """What two processes say of which the second finds other files."""
    folders = [recipe.parent / str(rank) for rank in (0, 1)]
    for folder in folders:
        folder.mkdir()
        shutil.copytree(recipe.parent / "tiny", folder / "tiny")
        for path in recipe.parent.glob("*.*"):
            if path.is_file():
                shutil.copy(path, folder)
    change(folders[1])
    script = (
        f"cd {recipe.parent}/$RANK && exec {sys.executable} -m mtl train {recipe.name} --output {recipe.parent}/run"
    )
    _, err = done(torchrun(2, "sh", "-c", script, options=("--no-python",)), 1)
    return [line for line in said(err) if not line.startswith("note: ")]


@pytest.mark.slow
def test_processes_with_other_data(recipe: Path) -> None:
    def change(folder: Path) -> None:
        path = folder / "length.csv"
        path.write_text(path.read_text().replace("text,label\n", "text,label\na b,0.5\n"))

    lines = differing(recipe, change)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith("error: data.train.length is '")
    assert "' in process 1" in lines[0]
    assert lines[0].endswith("; start all processes with the same recipe, data and weights")


@pytest.mark.slow
def test_processes_with_another_recipe_weights_or_without_data(recipe: Path) -> None:
    def other(folder: Path) -> None:
        path = folder / recipe.name
        path.write_text(path.read_text().replace("epochs = 3", "epochs = 4\nseed = 1"))
        (folder / "tiny" / "model.safetensors").write_bytes(b"x")

    lines = differing(recipe, other)  # torchrun may end the first before it can say why it stops
    assert any(line.startswith("error: tiny/model.safetensors is no whole") for line in lines)
    for folder in (recipe.parent / "0", recipe.parent / "1", recipe.parent / "run"):
        shutil.rmtree(folder, ignore_errors=True)

    def change(folder: Path) -> None:
        path = folder / recipe.name
        path.write_text(path.read_text().replace("epochs = 3", "epochs = 4\nseed = 1"))

    lines = differing(recipe, change)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "training.epochs is 3 in process 0 and 4 in process 1; training.seed is 0 in process 0" in lines[0]
    assert "weights is '" in lines[0]  # the heads follow from the seed


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed(recipe: Path, tmp_path: Path, restarts: int, victim: int) -> None:
    """The other stops at once, and torchrun starts both again, which go on: to the bytes of a run without that."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    launcher = torchrun(2, "-m", "mtl", "train", recipe, "--output", run, options=("--max-restarts", restarts))
    wait_for(run / "checkpoints" / "step-00000005", launcher)
    started = time.monotonic()
    os.kill(ranks_of(launcher)[victim], signal.SIGKILL)
    out, err = done(launcher, 1 - restarts)
    if not restarts:
        assert time.monotonic() - started < 60
        lines = [line for line in said(err) if not line.startswith("note: ")]
        assert len(lines) == 1
        assert lines[0].startswith("error: another process died, or its machine cannot be reached (")
        return
    assert "going on after step " in out
    done(torchrun(2, "-m", "mtl", "train", recipe, "--output", whole))
    for name in ("metrics.jsonl", "model/model.safetensors", "model/heads.safetensors"):
        if (whole / name).exists():
            assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_another_run(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert mtl("train", recipe, "--output", run).returncode == 0
    before = (run / "metrics.jsonl").stat()
    _, err = done(torchrun(2, "-m", "mtl", "train", recipe, "--output", run, options=("--max-restarts", 1)), 1)
    assert f"{run} exists and is not empty; go on there with --resume" in err
    assert (run / "metrics.jsonl").stat() == before


@pytest.mark.slow
def test_a_tagger_in_two_processes_is_that_of_one(recipe: Path, tmp_path: Path) -> None:
    """With weights of tags, whose sum is the window's in all processes together."""
    rows = [{"tokens": [*"abcdefgh"[i:], "a"], "tags": ["B-x", *["O"] * (7 - i), "B-y"]} for i in range(7)]
    (tmp_path / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (model,) = [line for line in recipe.read_text().splitlines() if line.startswith("model = ")]
    tagger = tmp_path / "tagger.toml"
    tagger.write_text(f"""{model}
[training]
batch_size = 2
accumulate = 2
[[task]]
name = "ner"
kind = "tokens"
train = "{tmp_path / "marked.jsonl"}"
dev = "{tmp_path / "marked.jsonl"}"
class_weights = "balanced"
calibrate = true
""")
    tagger = tagger.rename(recipe.parent / "tagger.toml")
    for processes in (1, 2):
        done(torchrun(processes, "-m", "mtl", "train", tagger, "--output", tmp_path / str(processes)))
    for name in ("metrics.jsonl", "model/model.safetensors", "model/tasks.json", "model/tasks.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
