"""Number formats of vectors, and outputs that were interrupted."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_cli import Done, mtl

from mtl.encode.outputs import Output, convert, value_ranges
from mtl.errors import InputError

__all__ = ["mtl"]  # the fixture

VECTORS = np.array([[-1.0, 0.0, 2.0], [1.0, 0.5, -2.0], [0.0, 0.25, 1.0]], dtype=np.float32)
SETTINGS = {"model": "m", "overflow": "warn"}


def test_conversions_by_hand() -> None:
    ranges = np.array([[-1, 0, -2], [1.55, 0.51, 3.1]], dtype=np.float32)  # steps of 0.01, 0.002 and 0.02
    assert convert(VECTORS, "uint8", ranges).tolist() == [[0, 0, 200], [200, 250, 0], [100, 125, 150]]
    assert convert(VECTORS, "int8", ranges).tolist() == [[-128, -128, 72], [72, 122, -128], [-28, -3, 22]]
    assert convert(VECTORS, "ubinary").tolist() == [[0b00100000], [0b11000000], [0b01100000]]
    assert convert(VECTORS, "binary").tolist() == [[32 - 128], [192 - 128], [96 - 128]]
    assert convert(VECTORS, "float16").dtype == np.float16
    assert convert(VECTORS, "float32") is VECTORS


def test_values_beyond_the_ranges_stay_at_their_ends() -> None:
    assert convert(VECTORS * 3, "int8", value_ranges(VECTORS))[0].tolist() == [-128, -128, 127]
    assert convert(np.ones((2, 1), dtype=np.float32), "uint8").tolist() == [[0], [0]]


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_as_sentence_transformers(precision: str) -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 16)).astype(np.float32)
    theirs = quantization.quantize_embeddings(vectors, precision)
    ours = convert(vectors, precision)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("precision", "width", "dtype"),
    [("float16", 12, "float16"), ("int8", 12, "int8"), ("binary", 2, "int8"), ("ubinary", 2, "uint8")],
)
def test_embed_in_every_format(mtl: Callable[..., Done], folder: Path, tmp_path: Path, precision, width, dtype) -> None:
    options = ["--model", folder, "--output-precision", precision, "a b", "c", "d e f"]
    for suffix in (".npy", ".safetensors", ".jsonl"):
        done = mtl("embed", *options, "--output", tmp_path / f"o{suffix}")
        assert done.returncode == 0, done.stderr
    array = np.load(tmp_path / "o.npy")
    assert (array.shape, array.dtype) == ((3, width), dtype)
    assert np.array_equal(load_file(tmp_path / "o.safetensors")["embeddings"], array)
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert np.array_equal(np.array(rows, dtype=dtype), array)
    assert (tmp_path / "o.npy.ranges.npy").exists() == (precision == "int8")


def lines(path: Path, size: int) -> list[str]:
    letters = "abcdefghijklmnop"
    texts = [f"{letters[i % 16]} {letters[i // 16 % 16]} {letters[i // 256 % 16]}" for i in range(size)]
    path.write_text("\n".join(texts) + "\n")
    return texts


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
def test_kill_and_resume(mtl: Callable[..., Done], folder: Path, tmp_path: Path, suffix: str) -> None:
    """kill -9 in the middle; the end is the same to the byte, and nothing is computed twice."""
    lines(tmp_path / "in.txt", 30000)
    arguments = ["embed", "--model", str(folder), "--input", str(tmp_path / "in.txt")]
    arguments += ["--output-precision", "int8"] if suffix == ".npy" else []
    assert mtl(*arguments, "--output", tmp_path / f"whole{suffix}").returncode == 0
    output = tmp_path / f"parts{suffix}"
    process = subprocess.Popen([sys.executable, "-m", "mtl.cli", *arguments, "--output", str(output)],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    state = output.with_name(output.name + ".partial.json")
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert json.loads(state.read_text())["rows"] >= 8192
    done = mtl(*arguments, "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_an_interrupt_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    lines(tmp_path / "in.txt", 200000)
    output = tmp_path / "out.npy"
    command = [sys.executable, "-m", "mtl.cli", "embed", "--model", str(folder), "--input", str(tmp_path / "in.txt")]
    process = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.PIPE, text=True)
    state = output.with_name("out.npy.partial.json")
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rows are kept in" in err
    assert "--resume goes on with them" in err
    assert "Traceback" not in err


def test_a_mistake_far_into_the_input_loses_nothing(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    """The line is mended, and the run goes on."""
    texts = lines(tmp_path / "in.txt", 20000)
    arguments = ["embed", "--model", folder, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy"]
    good = (tmp_path / "in.txt").read_bytes()
    (tmp_path / "in.txt").write_bytes(good[:-3] + b"\xe9\n")
    done = mtl(*arguments)
    assert done.returncode == 1
    assert "line 20000: not UTF-8" in done.stderr
    (tmp_path / "in.txt").write_bytes(good)
    assert mtl(*arguments, "--resume").returncode == 0
    assert len(np.load(tmp_path / "out.npy")) == len(texts)


def partial(path: Path, rows: int = 2) -> None:
    output = Output(path, 3, "float32", SETTINGS)
    output.write(["a", "b"][:rows], VECTORS[:rows])
    output.file.close()


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    with pytest.raises(InputError, match="holds nothing to go on with; start again without --resume"):
        Output(path, 3, "float32", SETTINGS, resume=True)
    partial(path)
    with pytest.raises(InputError, match="was made otherwise: overflow was 'warn', is 'chunk'"):
        Output(path, 3, "float32", SETTINGS | {"overflow": "chunk"}, resume=True)
    with pytest.raises(InputError, match="the first 2 texts are not those in"):
        Output(path, 3, "float32", SETTINGS, resume=True).skip(iter(["a", "B"]))
    with pytest.raises(InputError, match="the first 2 texts are not those in"):
        Output(path, 3, "float32", SETTINGS, resume=True).skip(iter(["a"]))
    output = Output(path, 3, "float32", SETTINGS, resume=True)
    output.skip(iter(["a", "b"]))
    output.write(["c"], VECTORS[2:])
    output.finish()
    assert np.array_equal(np.load(path), VECTORS)


def test_a_shorter_or_damaged_state(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    partial(path)
    (tmp_path / "o.npy.partial").write_bytes(b"short")
    with pytest.raises(InputError, match="is shorter than it was"):
        Output(path, 3, "float32", SETTINGS, resume=True)
    (tmp_path / "o.npy.partial.json").write_text("{")
    with pytest.raises(InputError, match="holds nothing to go on with"):
        Output(path, 3, "float32", SETTINGS, resume=True)


def test_resume_needs_an_output(mtl: Callable[..., Done], folder: Path) -> None:
    done = mtl("embed", "--model", folder, "a", "--resume")
    assert done.returncode == 2
    assert "go with --output" in done.stderr
