"""The README is true: its Python and its commands run, its figures are measured, its tree names what is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.readme import ALL, brief, faults, render, replaced, serving
from mtl.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

# A command stands on an indented line of its own, before two spaces and what it does
COMMANDS = re.findall(r"^    ((?:make|mtl|python|pip|docker) .*?)(?:  .*)?$", README, re.MULTILINE)
# Some stand within a sentence
COMMANDS += sorted({f"make {target}" for target in re.findall(r"`make ([a-z-]+)`", README)})
# What is not run here: .ci/run runs the targets that test, a small benchmark runs in test_benchmarks.py, a server in
# tests/serve, and an installation in test_packaging.py
ELSEWHERE = re.compile(r"make (test|test-slow|test-reference|lint|bench-peers)$|pip install |mtl serve")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[0], {})
    assert "0.66595" in capsys.readouterr().out
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_recipes_are_some(tmp_path: Path) -> None:
    kinds = []
    for block in blocks("toml"):
        (tmp_path / "my.toml").write_text(block)
        kinds += [task.kind for task in read_recipe(tmp_path / "my.toml").tasks]
    assert kinds == ["single-label", "regression"]


def test_the_first_command_prints_what_is_shown() -> None:
    """With the Makefile's own sentences."""
    recipe = MAKEFILE.split("\nembed:")[1].split("\ntrain:")[0]
    texts = re.findall(r'"([A-Z][^"]+[.!])"', recipe)
    command = [sys.executable, "-m", "mtl", "embed", "--threads", "2", "--", *texts]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stderr + done.stdout).splitlines() == blocks("text")[0].splitlines()


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 250


def test_every_link_leads_somewhere() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_what_is_not_run_here_runs_in_ci() -> None:
    assert "make test" in COMMANDS
    for command in COMMANDS:
        if re.fullmatch(r"make (test|lint).*", command):
            assert command in CI.splitlines(), command


def test_the_figures_are_those_of_the_results() -> None:
    """`python -m benchmarks.readme` writes them."""
    longer = ALL.read_text(encoding="utf-8")
    assert replaced(README, "speed", brief()) == README
    for name, written in (("speed", render()), ("faults", faults()), ("serving", serving())):
        assert replaced(longer, name, written) == longer
    assert "| killed | moments tried |" in longer
    assert "| texts per second |" in README


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a reader has after `make setup`, with a demo of a few rows, and the files that the README speaks of."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", ".ci", "examples", "mtl", "weights"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for data in (tmp_path / "mtl" / "recipes").rglob("*.jsonl"):
        data.write_text("".join(data.read_text().splitlines(keepends=True)[:30]))
    site = f'export PYTHONPATH="{tmp_path}" OMP_WAIT_POLICY=passive'
    script(tmp_path / ".venv" / "bin" / "mtl", site, f'exec "{sys.executable}" -m mtl "$@"')
    script(tmp_path / ".venv" / "bin" / "python", site, f'exec "{sys.executable}" "$@"')
    # `docker run ... mtl ARGUMENTS` runs the image's entry point in the mounted folder; CI builds the image itself
    script(
        tmp_path / "docker" / "docker",
        '[ "$1" = run ] || exit 0',
        'while [ "$1" != mtl ]; do shift; done',
        "shift; [ $# -gt 0 ] || set -- embed one two",
        'exec mtl "$@"',
    )
    for extra in ("core", "train", "test"):
        (tmp_path / ".venv" / f".installed-{extra}").touch()
    rows = [json.loads(line) for line in (tmp_path / "mtl" / "recipes" / "demo" / "topic-train.jsonl").open()]
    (tmp_path / "texts.txt").write_text("".join(f"{row['text']}\n" for row in rows))
    (tmp_path / "corpus").mkdir()
    for name in ("rows.jsonl", "corpus/part-1.jsonl", "topic-train.jsonl", "topic-dev.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    stars = "text,label\n" + "".join(f'"{row["text"]}",{i % 5}\n' for i, row in enumerate(rows))
    for part in ("", "-dev"):
        (tmp_path / f"stars{part}.csv").write_text(stars)
    pairs = [{"text_a": rows[i - 1]["text"], "text_b": rows[i]["text"], "score": i % 3} for i in range(len(rows))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [{"_id": str(i), "text": row["text"]} for i, row in enumerate(rows)]
    (tmp_path / "search" / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (tmp_path / "search" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "search" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t1\t1\n")
    recipe = tmp_path / "mtl" / "recipes" / "demo-pairs.toml"
    recipe.write_text(re.sub(r"epochs = \d+", "epochs = 1", recipe.read_text()))
    (tmp_path / "my.toml").write_text(re.sub(r"epochs = \d+", "epochs = 1", blocks("toml")[0]))
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(checkout: Path) -> None:
    """In the order of the README, so that what is trained above is there below."""
    path = f"{checkout / 'docker'}:{checkout / '.venv' / 'bin'}:{os.environ['PATH']}"
    for command in COMMANDS:
        if ELSEWHERE.match(command):
            continue
        done = subprocess.run(
            command, shell=True, cwd=checkout, env=os.environ | {"PATH": path, "PYTHONPATH": str(checkout)},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python")[1:])
def test_the_other_examples_run(code: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that train: where the README's recipe and its data are."""
    monkeypatch.chdir(checkout)
    exec(code, {})
