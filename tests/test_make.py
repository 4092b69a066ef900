"""The Makefile hands on what a user typed, to the letter."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPED = """$HOME $(MODEL) $$ `id` "q" 'it''s' #x \\ 日本語"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def arguments_of(tmp_path: Path, target: str, *variables: str, **environment: str) -> list[str]:
    """What mtl would be called with, from a stand-in for it."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    stub = tmp_path / "bin" / "mtl"
    stub.write_text('#!/bin/sh\nfor argument in "$@"; do printf "%s\\n" "$argument"; done\n')
    stub.chmod(0o755)
    for extra in ("core", "train"):
        (tmp_path / f".installed-{extra}").touch()
    command = ["make", "--no-print-directory", "-C", ROOT, f"VENV={tmp_path}", target, *variables]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout.splitlines()


def test_text_is_embedded_as_it_was_typed(tmp_path: Path) -> None:
    expected = ["embed", "--model", "all-MiniLM-L6-v2", "--precision", "fp32", "--", TYPED]
    assert arguments_of(tmp_path, "embed", f"TEXT={TYPED}") == expected
    assert arguments_of(tmp_path, "embed", TEXT=TYPED) == expected
    assert arguments_of(tmp_path, "embed")[6:8] == ["The weather is lovely today.", "It's so sunny outside!"]
    assert arguments_of(tmp_path, "embed", "INPUT=a$b.txt", "PRECISION=auto")[3:] == [
        "--precision", "auto", "--input", "a$b.txt"
    ]  # fmt: skip


def test_predict_too(tmp_path: Path) -> None:
    expected = ["predict", "--model", "runs/$x", "--precision", "fp32", "--", TYPED]
    assert arguments_of(tmp_path, "predict", "MODEL=runs/$x", f"TEXT={TYPED}") == expected


def test_train_in_several_processes(tmp_path: Path) -> None:
    assert arguments_of(tmp_path, "train", "RUN=runs/$x", "RESUME=1") == [
        "train", "demo", "--output", "runs/$x", "--resume"
    ]  # fmt: skip
    shutil.copy(tmp_path / "bin" / "mtl", tmp_path / "bin" / "torchrun")
    arguments = arguments_of(tmp_path, "train", "RECIPE=my $x.toml", PROCESSES="2")
    assert arguments == ["--standalone", "--nproc-per-node", "2", "-m", "mtl", "train", "my $x.toml"]


def test_a_default_is_no_choice_for_a_make_below(tmp_path: Path) -> None:
    """Tests that call make run under `make test-slow`; there a default of the outer one named a model of the inner."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    for extra in ("core", "test-scale"):
        (tmp_path / f".installed-{extra}").touch()
    command = ["make", "--no-print-directory", "-C", ROOT, f"VENV={tmp_path}", "test-slow"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    seen = subprocess.run(command, capture_output=True, text=True, env=plain, check=True).stdout
    assert "VENV=" in seen
    assert not {"MODEL", "HEADS", "PRECISION"} & {line.partition("=")[0] for line in seen.splitlines()}
