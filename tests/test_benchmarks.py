"""The benchmark's own code: what it searches, compares and says; and one tiny run of it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import randomized

from benchmarks import bench, gpu, machine, measure, readme, search, serving, workloads
from benchmarks.processes import Place, Setting, Worker
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.model.encoder import DistilBert

ROOT = Path(__file__).parents[1]
EPYC = {"vendor_id": "AuthenticAMD", "cpu family": "23", "model name": "AMD EPYC", "flags": "sse4_1 avx2 fma"}
XEON = {"vendor_id": "GenuineIntel", "model name": "Intel(R) Xeon(R) CPU", "flags": "avx2 avx512f amx_tile amx_bf16"}


@pytest.mark.parametrize(
    ("fields", "slug", "bf16"),
    [
        (EPYC, "amd-epyc-avx2-family23", False),
        (XEON, "intel-xeon-amx", True),
        (XEON | {"flags": "avx2 avx512f avx512_bf16"}, "intel-xeon-avx512", True),
        ({"CPU implementer": "0x41", "Features": "fp asimd bf16"}, "arm-neon", True),
    ],
)
def test_a_processor_has_a_folder_and_number_formats(fields: dict[str, str], slug: str, bf16: bool) -> None:
    assert machine.slug(fields) == slug
    assert machine.native_bf16(machine.flags(fields)) == bf16


def test_bf16_is_compared_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "cpu_fields", lambda: EPYC)
    assert bench.engines("cpu", peers=False) == ["mtl", "mtl int8"]
    monkeypatch.setattr(bench, "cpu_fields", lambda: XEON)
    assert [name for name in bench.engines("cpu", peers=True) if bench.ENGINES[name].precision == "bf16"] == [
        "mtl bf16", "sentence-transformers bf16", "openvino default"
    ]  # fmt: skip
    assert bench.engines("cuda", peers=True) == [
        "mtl", "sentence-transformers", "mtl bf16", "sentence-transformers bf16"
    ]  # fmt: skip


def test_every_candidate_has_16_full_batches_for_each_thread() -> None:
    assert search.candidates(texts=512, threads=2) == [4, 8, 16]
    assert search.candidates(texts=511, threads=2) == [2, 4, 8]
    assert search.candidates(texts=5, threads=2) == [1]
    for name in workloads.LARGEST_BATCH:
        assert search.candidates(workloads.count(name, threads=3), threads=3)[-1] == workloads.LARGEST_BATCH[name]


def test_what_is_searched() -> None:
    assert search.settings("mtl", [2, 4], 3) == [Setting(2, 1)]
    assert search.settings("sentence-transformers", [2, 4], 3) == [Setting(2, 1), Setting(4, 1)]
    assert search.settings("openvino", [2, 4], 3) == [Setting(2, 1), Setting(4, 1), Setting(2, 3), Setting(4, 3)]
    assert search.settings("openvino", [2, 4], 1) == [Setting(2, 1), Setting(4, 1)]


def test_a_part_has_the_lengths_of_the_whole() -> None:
    assert search.part_of(list("abcdefgh"), [1, 2, 3, 4, 5, 6, 7, 8]) == ["h", "d"]


def test_agreement_is_that_of_directions() -> None:
    found = measure.agreement(np.array([[2.0, 0], [3, 4]], np.float32), np.array([[1.0, 0], [4, 3]], np.float32))
    assert found == pytest.approx({"largest_difference": 0.2, "smallest_cosine": 0.96, "mean_cosine": 0.98}, abs=1e-6)


def test_an_engine_that_computes_something_else_is_refused() -> None:
    found = {"largest_difference": 0.01, "smallest_cosine": 0.99}
    with pytest.raises(measure.click.ClickException, match=r"openvino differs from mtl by 0.01 in fp32; nothing is"):
        measure.check("openvino", found)
    measure.check("openvino default", found)
    with pytest.raises(measure.click.ClickException, match=r"openvino default has cosine 0.40 to mtl in fp32; noth"):
        measure.check("openvino default", found | {"smallest_cosine": 0.4})


def engine(precision: str, seconds: float) -> dict[str, Any]:
    return {"precision": precision, "seconds": [seconds] * 3}


def test_the_sentences_name_the_fastest_peer_and_what_is_lost() -> None:
    engines = {"mtl": engine("fp32", 2.0), "sentence-transformers": engine("fp32", 4.0),
               "openvino": engine("fp32", 1.0), "mtl int8": engine("int8", 1.0)}  # fmt: skip
    alone = {"mtl": {"precision": "fp32", "latency_ms": {"p50": 6.0}},
             "onnxruntime": {"precision": "fp32", "latency_ms": {"p50": 3.0}}}  # fmt: skip
    parts = {"mixed-short": {"texts": 8, "engines": engines}, "one-text": {"engines": alone}}
    assert readme.sentences({"model": "all-MiniLM-L6-v2", "parts": parts}) == [
        "- MiniLM, fp32: 0.50 times openvino and 2.00 times sentence-transformers on short texts.",
        "- MiniLM, one text alone: 6.0 ms; 2.00 times the time of onnxruntime.",
    ]


def test_training_is_told_with_its_accuracy() -> None:
    speeds = {"mtl fp32": [6.0], "Trainer fp32": [4.0], "mtl bf16": [12.0], "Trainer bf16": [8.0],
              "mtl, frozen trunk": [30.0], "mtl, frozen trunk, later epochs": [900.0],
              "Trainer, frozen trunk": [10.0]}  # fmt: skip
    accuracy = {"mtl fp32": 0.85, "Trainer fp32": 0.84, "mtl bf16": 0.86, "Trainer bf16": 0.83}
    assert readme.training_sentence({"texts_per_second": speeds, "accuracy": accuracy}) == (
        "- Training: 1.50 times transformers' Trainer in fp32 (dev accuracy 0.850 and 0.840); 1.50 times transformers' "
        "Trainer in bf16 (dev accuracy 0.860 and 0.830); in bf16 3.00 times the Trainer in fp32; with a frozen trunk "
        "3.00 times, from the second epoch on 90 times."
    )


BARE = """
import importlib.util, runpy, sys
missing = {"accelerate", "click", "huggingface_hub", "hypothesis", "matplotlib", "pyarrow", "pytest", "scipy",
           "sentence_transformers", "sklearn", "tqdm", "transformers"}
sys.modules |= dict.fromkeys(missing)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in missing else find_spec(name, *more)
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.fixture
def letters(checkpoint: Checkpoint, tmp_path: Path) -> str:
    """A tiny model's folder, for texts of up to 512 tokens."""
    config = dataclasses.replace(checkpoint.config, max_position_embeddings=512)
    save(Checkpoint(randomized(DistilBert(config)), checkpoint.tokenizer, 512), tmp_path / "model")
    return str(tmp_path / "model")


def test_what_a_gpu_has_to_show_is_shown_on_a_cpu(letters: str, tmp_path: Path) -> None:
    """With torch, tokenizers, safetensors and numpy alone, which is what a machine with a GPU may have."""
    given = ["--device", "cpu", "--scale", "0.0005", "--model", letters, "--save", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, "-c", BARE, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = (tmp_path / "results").glob("*/gpu.json")
    result = json.loads(path.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    parts = result["gpu"]
    assert not [name for name, part in parts.items() if "wrong" in part]
    assert parts["vectors"]["fp32"]["largest difference"] == 0.0
    assert parts["vectors"]["bf16"]["smallest cosine"] >= 0.999
    assert len(parts["training"]["losses"]["cpu"]) == 6
    for name in ("mixed-short", "mixed-long", "training speed"):
        assert parts[name]["texts per second"].keys() == {"mtl fp32", "mtl bf16"}


def test_a_gpu_s_rate_of_the_peer_s_alone_is_in_no_row() -> None:
    rates = {"mtl fp32": 200.0, "peer fp32": 100.0, "peer bf16": 300.0}
    assert readme.gpu_table({"mixed-short": {"texts per second": rates}, "vectors": {}}).count("peer") == 2
    assert "| 2.00 x" in readme.gpu_table({"mixed-short": {"texts per second": rates}})


def test_index_table() -> None:
    ours = {"engine": "mtl fp32", "p50_ms": 39.72, "p99_ms": 68.0, "recall": 1.0, "bytes": 1_544_000_264}
    peer = {"engine": "faiss flat", "p50_ms": 56.6, "p99_ms": 70.8, "recall": 1.0, "bytes": None}
    lines = readme.index_table([ours, peer]).splitlines()
    assert lines[2:] == ["| mtl fp32 | 39.7 | 68.0 | 1.000 | 1,544 |", "| faiss flat | 56.6 | 70.8 | 1.000 |  |"]


def test_what_is_wrong_on_a_gpu_is_kept_with_its_figures(letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST_COSINE", 1.1)
    found = gpu.done(lambda: gpu.vectors(letters, "cpu", 0.0005))
    assert found["wrong"] is True
    assert found["bf16"]["smallest cosine"] < 1.1
    assert gpu.done(lambda: {}["x"])["error"] == "KeyError: 'x'"


@pytest.mark.slow
def test_an_engine_that_stops_says_why(tmp_path: Path) -> None:
    with pytest.raises(measure.click.ClickException, match=rf"^mtl stopped: .*{tmp_path}"):
        Worker("mtl", Place(str(tmp_path), 1, "cpu"), Setting(1, 1))


@pytest.mark.slow
def test_a_run_keeps_what_it_does_not_measure(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own engine alone, on a tiny model, part by part."""
    monkeypatch.setattr(machine, "cpu_fields", lambda: EPYC)
    texts = tmp_path / "texts.txt"
    texts.write_text("a b\nc\nd e f\ng\n")
    config = dataclasses.replace(checkpoint.config, max_position_embeddings=512)
    save(Checkpoint(randomized(DistilBert(config)), checkpoint.tokenizer, 512), tmp_path / "model")
    common = ["--engine", "mtl", "--model", str(tmp_path / "model"), "--rounds", "1", "--threads", "1"]
    for more in (["--texts", str(texts)], ["--workload", "one-text", "--scale", "0.1"]):
        ran = CliRunner().invoke(bench.main, [*common, *more, "--save", str(tmp_path / "results")])
        assert ran.exit_code == 0, ran.output
    path = tmp_path / "results" / "amd-epyc-avx2-family23" / "model.json"
    result = json.loads(path.read_text())
    assert json.loads(ran.stdout.splitlines()[-1]) == result
    assert result["parts"].keys() == {"texts.txt", "one-text"}
    measured = result["parts"]["texts.txt"]["engines"]["mtl"]
    assert (measured["batch"], measured["streams"], measured["tried"]) == (None, None, [])
    assert len(measured["seconds"]) == 1
    assert measured["smallest_cosine"] == pytest.approx(1)
    assert path.with_suffix(".png").is_file()


@pytest.mark.slow
def test_a_batch_of_1024_pairs_takes_the_memory_of_its_pieces() -> None:
    command = [sys.executable, "-m", "benchmarks.pairs", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    peaks = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
    assert peaks["1024"] <= 1.3 * peaks["512"]


def test_what_is_said_of_servers(tmp_path: Path) -> None:
    """The middle of the rounds, and how often the peer's; to a peer that answered nothing there is no ratio."""
    rounds = [{"per second": rate, "p50": 9.0, "p99": 99.0, "refused": 1} for rate in (30.0, 10.0, 20.0)]
    slow = [dict(each, **{"per second": each["per second"] / 4}) for each in rounds]
    said = serving.shown({"1 client": {"mtl fp32": rounds, serving.PEER: slow}}).splitlines()
    assert said[1].split() == ["1", "client", "mtl", "fp32", "20.0", "4.00", "9", "99", "3"]
    none = [dict(each, **{"per second": 0.0}) for each in rounds]
    assert "4.00" not in serving.shown({"1 client": {"mtl fp32": rounds, serving.PEER: none}})
    lines = serving.bodies(["a", "b", "c"], 2, tmp_path / "x").read_text().splitlines()
    assert [json.loads(line)["input"] for line in lines] == [["a", "b"], ["c"]]
    assert json.loads(serving.bodies(["a"], 1, tmp_path / "y").read_text())["input"] == "a"
    assert 0 < serving.resident(os.getpid()) < 10**6
