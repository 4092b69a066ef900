"""Files of a model's folder, damaged at random: a right answer or one clear line, never anything else.

Each example loads a tiny model of which one file is damaged, and embeds two texts.
"""

import dataclasses
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_json, damaged_toml

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints import fetch as fetching
from mtl.checkpoints.load import Checkpoint
from mtl.errors import MtlError
from mtl.model.pooling import Dense, Normalize
from mtl.tasks.spec import TaskSpec

FILES = [
    "config.json", "modules.json", "tokenizer.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "1_Pooling/config.json", "2_Dense/config.json", "tasks.json", "tokenizer_config.json",
]  # fmt: skip


@pytest.fixture
def whole(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A folder with every kind of file that we read."""
    rich = dataclasses.replace(checkpoint, after=(Dense(12, 4), Normalize()), prompts={"q": "a "}, default_prompt="a ")
    specs = [TaskSpec("topic", ("x", "y")), TaskSpec("score", kind="regression", pooling=("cls",), head="distilbert")]
    MultiTaskModel(SentenceEncoder.from_checkpoint(rich), specs).save(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*args: object) -> None:
        raise AssertionError("no answer within five minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def quick(examples: int) -> Callable:
    """So many examples, the same each time: a failure of `make test` can be had again."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks)


def thorough(examples: int) -> Callable:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


def right_or_one_line(answer: Callable[[], np.ndarray]) -> None:
    line = ""
    try:
        assert np.isfinite(answer()).all()
    except MtlError as error:
        line = str(error)
    assert line.isprintable(), repr(line)
    assert len(line) < 3000


def embed(folder: Path) -> np.ndarray:
    return SentenceEncoder.from_pretrained(folder).encode(["a b", "zz é \0"], overflow="truncate")


def try_out(whole: Path, name: str, content: bytes) -> None:
    """With this content in the file, and then with the right one again."""
    original = (whole / name).read_bytes()
    (whole / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        right_or_one_line(lambda: embed(whole))
        right_or_one_line(lambda: MultiTaskModel.from_pretrained(whole).predict("a b").embeddings)
    finally:
        (whole / name).write_bytes(original)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def with_header(data: bytes, header: bytes, length: int | None = None) -> bytes:
    """A safetensors file's data under another header."""
    start = 8 + int.from_bytes(data[:8], "little")
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data[start:]


def header_of(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@st.composite
def damaged_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(data))
    length = draw(st.sampled_from([None, None, None, 0, 1, 2**40, 2**63, 2**64 - 1]))
    return with_header(data, draw(damaged_json(header_of(data))), length)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_half_of_a_surrogate_pair(whole: Path, name: str) -> None:
    """JSON can write by an escape what UTF-8 cannot hold: as a name, and as a value."""
    fields = json.loads((whole / name).read_text())
    for more in ({"\ud800": 1}, {"unk_token": "\ud800"}, {"id2label": {"0": "a\udfff"}}):
        (whole / name).write_text(json.dumps(fields | more if isinstance(fields, dict) else [*fields, more]))
        with pytest.raises(MtlError, match="surrogate"):
            embed(whole)
    (whole / name).write_text(json.dumps(fields))


@pytest.mark.parametrize("name", FILES)
@quick(8)
@given(data=st.data())
def test_json(whole: Path, name: str, data: st.DataObject) -> None:
    try_out(whole, name, data.draw(damaged_json((whole / name).read_bytes())))


@pytest.mark.parametrize("name", ["model.safetensors", "tasks.safetensors"])
@quick(12)
@given(data=st.data())
def test_tensors(whole: Path, name: str, data: st.DataObject) -> None:
    try_out(whole, name, data.draw(damaged_tensors((whole / name).read_bytes())))


def test_headers_of_all_sizes(whole: Path) -> None:
    """What is likely to be allocated, or counted in too few bits."""
    data = (whole / "model.safetensors").read_bytes()
    fields = json.loads(header_of(data))
    name = "embeddings.word_embeddings.weight"
    for shape in ([0, 12], [2**62, 12], [2**63, 2], [38 * 12], [1] * 5000, [-1, 12], [1e300], []):
        for dtype in ("F32", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "X"):
            changed = fields | {name: fields[name] | {"shape": shape, "dtype": dtype}}
            (whole / "model.safetensors").write_bytes(with_header(data, json.dumps(changed).encode()))
            with pytest.raises(MtlError):
                embed(whole)


@quick(20)
@given(data=st.data())
def test_manifest(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "manifest.toml"
    path.write_bytes(data.draw(damaged_toml(fetching.MANIFEST.read_text())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "MANIFEST", path)
        right_or_one_line(lambda: np.array([entry.size > 0 or entry.dim for entry in fetching.manifest().values()]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@thorough(100)
@given(data=st.data())
def test_json_thoroughly(whole: Path, name: str, data: st.DataObject) -> None:
    try_out(whole, name, data.draw(damaged_json((whole / name).read_bytes())))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "tasks.safetensors"])
@thorough(100)
@given(data=st.data())
def test_tensors_thoroughly(whole: Path, name: str, data: st.DataObject) -> None:
    try_out(whole, name, data.draw(damaged_tensors((whole / name).read_bytes())))
