"""A folder with a user's own weights.py, tokenizers.py or encode.py in it: everything works there."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import mtl; print(mtl.SentenceEncoder.__name__, mtl.embed_corpus.__name__)"
HIDDEN = "tokenizers, by the name of a library that mtl needs: it is the library that is imported from here on"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("weights", "tokenizers", "encode", "search", "tasks"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "script.py").write_text(f"{CODE}\nimport tokenizers\nprint(tokenizers.Tokenizer.__name__)\n")
    (tmp_path / "theirs.py").write_text("import mtl\nprint(mtl.errors.MtlError.__name__)\n")
    return tmp_path


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("way", ["-c", "script"])
def test_import(place: Path, way: str) -> None:
    done = run(place, sys.executable, *(["-c", CODE] if way == "-c" else ["script.py"]))
    assert done.stdout.split() == ["SentenceEncoder", "embed_corpus"] + ["Tokenizer"] * (way == "script")
    assert done.stderr == f"{place} holds {HIDDEN}\n"


@pytest.mark.parametrize("command", [[sys.executable, "-m", "mtl"], [str(Path(sys.executable).with_name("mtl"))]])
def test_command(place: Path, command: list[str]) -> None:
    done = run(place, *command, "embed", "a text")
    assert "shape (1, 384)" in done.stdout
