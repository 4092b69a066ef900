"""The page that is saved with a model, and what gets to a hub of our own, through the hub's own client."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoints.folders import split_in_shards
from conftest import randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from repositories import TOKEN, WritableHub, writable

import mtl
from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints import card as cards
from mtl.checkpoints import tokenizer as tokenizers
from mtl.checkpoints.card import HUB_TASKS, PLACEHOLDER, cell, markdown, public_name
from mtl.checkpoints.publish import is_models, model_files, page, push
from mtl.cli import main
from mtl.errors import InputError, MtlError, WeightsError
from mtl.tasks.kinds import KINDS
from mtl.training.recipe import Recipe
from mtl.training.session import located

TASKS = (TaskSpec("topic", ("x|y", "z"), head="distilbert", pooling=("cls",)), TaskSpec("score", kind="regression"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WritableHub]:
    import huggingface_hub.constants as constants

    with writable() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def heads(tiny: SentenceEncoder) -> MultiTaskModel:
    return randomized(MultiTaskModel(tiny, TASKS))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run that was trained, with data and a stray token beside the model's files."""
    data = tmp_path / "secret-place" / "rows.jsonl"
    data.parent.mkdir()
    rows = [{"text": text, "label": "yes" if "a" in text else "no"} for text in ("a b", "c d", "e a", "f")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSpec("vowel", ("yes", "no"), train=data, dev=data, test=data)
    recipe = mtl.Recipe(folder, [task], mtl.Training(epochs=1, batch_size=2))
    mtl.train(recipe, tmp_path / "demo")
    (tmp_path / "demo" / "model" / "rows.jsonl").write_text(data.read_text())
    (tmp_path / "demo" / "model" / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (tmp_path / "demo" / "model" / "checkpoints").mkdir()
    (tmp_path / "demo" / "model" / "checkpoints" / "config.json").write_text("{}")
    return tmp_path / "demo"


def head_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_every_kind_of_task_has_a_name_on_the_hub() -> None:
    assert KINDS.keys() <= HUB_TASKS.keys()
    assert all((HUB_TASKS[name] == "sentence-similarity") == kind.embeds for name, kind in KINDS.items())


def test_all_that_is_saved_is_the_models(heads: MultiTaskModel, tmp_path: Path) -> None:
    heads.save(tmp_path / "heads")
    assert model_files(tmp_path / "heads")[1] == []
    parts = {".", "2_Dense", "0_Transformer"}
    for name in ("onnx/model.onnx", "onnx/model_quantized.onnx", "2_Dense/config.json", "vocab.txt",
                 "sentence_roberta_config.json", "LICENSE",
                 *(f"0_Transformer/{name}" for kind in tokenizers.KINDS.values() for name in kind.files)):  # fmt: skip
        assert is_models(name, parts), name
    for name in ("token.json", "checkpoints/config.json", "data/config.json", "state.json", "README.md.bak", ".env",
                 "optimizer.safetensors", "x/1_Pooling/config.json", "rows.jsonl", "3_Dense/config.json",
                 "2_Dense/README.md", "onnx/config.json", ".git/config", ".lock", "pytorch_model.bin"):  # fmt: skip
        assert not is_models(name, parts), name


def test_a_model_that_others_saved_is_pushed_whole(folder: Path, tmp_path: Path, hub: WritableHub) -> None:
    """Its shards too, the files of its vocabulary, and its parts, whatever they are called, also by links in the
    folder."""
    (folder / "added_tokens.json").write_text("{}")
    shards = split_in_shards(folder)
    (folder / "1_Pooling").rename(folder / "layers")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "layers/"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "12_old").mkdir()
    (folder / "12_old" / "config.json").write_text("{}")
    push(folder, "me/shards")
    pushed = hub.repositories["me/shards"].branches["main"]
    assert pushed.keys() >= {*(path.name for path in shards), "model.safetensors.index.json", "added_tokens.json"}
    assert "layers/config.json" in pushed
    assert "12_old/config.json" not in pushed
    (folder / "layers").rename(folder / "kept")
    (folder / "layers").symlink_to("kept")
    push(folder, "me/linked")
    assert "layers/config.json" in hub.repositories["me/linked"].branches["main"]
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shards[0].name, "first.safetensors"))
    shards[0].rename(folder / "first.safetensors")
    (folder / shards[0].name).write_bytes(b"an older one")
    assert push(folder, "me/other")[1] == ["12_old/config.json", "kept/config.json", shards[0].name]
    pushed = hub.repositories["me/other"].branches["main"]
    assert {"first.safetensors", shards[1].name} <= pushed.keys()
    for name, content in pushed.items():
        (path := tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    vectors = [SentenceEncoder.from_pretrained(x).encode(["a b"]) for x in (folder, tmp_path / "there")]
    assert np.array_equal(*vectors)


@pytest.mark.parametrize("classes", [{"a": 1}, 5, "BertModel", [], [None]])
def test_an_older_form_has_a_page(folder: Path, classes: object) -> None:
    """With its transformer in a folder, whatever config.json says of its class."""
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    config = folder / "0_Transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": classes}))
    assert head_of(page(folder))["pipeline_tag"] == "sentence-similarity"
    assert model_files(folder)[0].keys() >= {"0_Transformer/model.safetensors", "0_Transformer/config.json"}


def test_nothing_of_this_machine_is_pushed(folder: Path, tmp_path: Path, hub: WritableHub) -> None:
    """Neither what a link leads to, nor the names of folders."""
    (tmp_path / "key").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "key")
    with pytest.raises(WeightsError, match="LICENSE leads to .*key, out of the model's folder"):
        push(folder, "me/x")
    (folder / "LICENSE").unlink()
    config = folder / "config.json"
    known = json.loads(config.read_text())
    for value in (str(tmp_path), str(Path.home() / "models" / "gone")):
        config.write_text(json.dumps(known | {"_name_or_path": value}))
        with pytest.raises(WeightsError, match="config.json names .*, a path of this machine, .*; save it with Senten"):
            push(folder, "me/x")
    assert not hub.log
    for value in ("bert-base-uncased", "/nobody/has/this", "/", "/tmp"):
        config.write_text(json.dumps(known | {"_name_or_path": value}))
        push(folder, "me/x")
    assert "me/x" in hub.repositories


def test_a_page_of_someone_s_own(folder: Path, hub: WritableHub) -> None:
    """It stays as it is; without one, the model is called as on the hub."""
    (folder / "README.md").write_bytes(f"café\r\n{PLACEHOLDER}".encode())
    push(folder, "me/x")
    assert hub.repositories["me/x"].branches["main"]["README.md"] == "café\r\nme/x".encode()
    (folder / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(WeightsError, match="README.md is no page of UTF-8 .*; convert it, or delete it"):
        push(folder, "me/x")
    (folder / "README.md").unlink()
    push(folder, "me/a-name")
    assert b"\n# a-name\n" in hub.repositories["me/a-name"].branches["main"]["README.md"]


def test_a_model_in_the_hubs_cache_has_its_name() -> None:
    assert public_name(Path("/cache/models--owner--a-name/snapshots") / ("0" * 40)) == "a-name"
    assert public_name(Path("/runs/demo/model")) == "demo"
    assert public_name(Path("/runs/snapshots/epoch3")) == "epoch3"


def test_options_that_a_push_has_not(tiny: SentenceEncoder, hub: WritableHub) -> None:
    """Passed over, this one would have made it public."""
    with pytest.raises(InputError, match="'privat' is no option of a push; expected some of private, create_pr"):
        tiny.push_to_hub("me/x", privat=True)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="private is 'yes'; expected True or False"):
        tiny.push_to_hub("me/x", private="yes")  # type: ignore[arg-type]
    assert not hub.log


@pytest.mark.parametrize("name", ["a\nb: c", "emoji \U0001f600", "\udcff", "- x", "'\"|`", "---", "{}", "model "])
def test_a_folder_of_any_name_has_a_page(tiny: SentenceEncoder, tmp_path: Path, name: str) -> None:
    tiny.save(tmp_path / name)
    text = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert head_of(text)["library_name"] == "sentence-transformers"
    assert sum(line.startswith("# ") for line in text.split("\n")) == 1


def test_what_is_saved_has_a_page(heads: MultiTaskModel, tiny: SentenceEncoder, tmp_path: Path) -> None:
    tiny.save(tmp_path / "plain")
    text = (tmp_path / "plain" / "README.md").read_text()
    assert head_of(text)["pipeline_tag"] == "sentence-similarity"
    assert head_of(text)["library_name"] == "sentence-transformers"
    assert "model-index" not in head_of(text)
    assert "MultiTaskModel" not in text
    heads.save(tmp_path / "heads" / "model")
    text = (tmp_path / "heads" / "model" / "README.md").read_text()
    assert text == page(tmp_path / "heads" / "model")
    assert "\n# heads\n" in text
    assert head_of(text)["pipeline_tag"] == "text-classification"
    assert "multi-task" in head_of(text)["tags"]
    assert r"| topic | single-label | x\|y, z |" in text
    assert str(tmp_path) not in text
    one = randomized(MultiTaskModel(tiny, TASKS[:1]))
    one.save(tmp_path / "one")
    assert head_of((tmp_path / "one" / "README.md").read_text())["library_name"] == "transformers"


@pytest.mark.parametrize(
    ("task", "library", "use"),
    [
        (TASKS[0], "transformers", 'pipeline("text-classification", "OWNER/NAME")(["The'),
        (TaskSpec("names", ("PER",), kind="tokens"), "transformers", 'pipeline("token-classification", "OWNER/NAME")'),
        (TaskSpec("judge", kind="relevance", text_field=("a", "b"), head="distilbert", pooling=("cls",)),
         "sentence-transformers", 'CrossEncoder("OWNER/NAME")\nprint(model.predict([("How'),
    ],
)  # fmt: skip
def test_a_head_is_shown_as_its_readers_have_it(
    tiny: SentenceEncoder, tmp_path: Path, task: TaskSpec, library: str, use: str
) -> None:
    """Also in a folder that others saved, where no file of ours says what it does."""
    randomized(MultiTaskModel(tiny, [task])).save(tmp_path / "model")
    for ours in (True, False):
        text = page(tmp_path / "model")
        known = head_of(text)
        assert known["pipeline_tag"] == HUB_TASKS[task.kind]
        assert known["pipeline_tag"] in known["tags"]
        assert known["library_name"] == library
        assert use in text
        assert "MultiTaskModel" in text
        for file in ("tasks.json", "tasks.safetensors") if ours else ():
            (tmp_path / "model" / file).unlink()


def test_a_runs_page_has_its_metrics_and_recipe(run: Path) -> None:
    text = (run / "model" / "README.md").read_text()
    known, results = head_of(text), json.loads((run / "results.json").read_text())
    assert text == page(run / "model")
    assert results["rows"] == {"train": {"vowel": 4}, "dev": {"vowel": 4}, "test": {"vowel": 4}}
    found = {
        (r["dataset"]["split"], m["type"]): m["value"] for r in known["model-index"][0]["results"] for m in r["metrics"]
    }
    expected = {(split, k): v for split in ("dev", "test") for k, v in results["metrics"][split]["vowel"].items()}
    assert found == expected
    assert len(found) > 2
    assert known["metrics"] == sorted({metric for _, metric in found})
    assert "base_model" not in known  # a folder of this machine
    assert '"learning_rate": 5e-05' in text
    assert "rows.jsonl, 4 rows" in text
    assert f"torch {results['versions']['torch']}" in text
    for path in (run / "results.json", *(run / "model").rglob("*")):
        if path.is_file():
            assert b"secret-place" not in path.read_bytes(), path
            assert str(run.parent).encode() not in path.read_bytes(), path


def test_a_base_model_is_called_as_on_the_hub(tmp_path: Path) -> None:
    found = cards.base_of("all-MiniLM-L6-v2")
    assert found is not None
    assert found["name"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert cards.base_of("me/x@abc") == {"name": "me/x", "revision": "abc"}
    assert cards.base_of(str(tmp_path)) is None
    for revision in ("@main", "@refs/convert/parquet", "@~parquet", ""):
        source = f"hf://datasets/me/data{revision}/parts/train.csv"
        assert cards.public_data(source) == {"dataset": "me/data", "file": "parts/train.csv"}
    assert cards.public_data("hf://datasets/me/data") == {"dataset": "me/data", "file": "me/data"}
    assert cards.public_data("/home/me/x.csv") == {"file": "x.csv"}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model/tasks.json", "results.json"])
def test_a_page_of_damaged_files(run: Path, file: str) -> None:
    """Whatever stands there in a value's place, the page is made, or one line says why not."""
    whole = json.loads((run / file).read_text())

    def places(content: Any) -> Iterator[tuple[Any, Any]]:
        for key in (
            [*content] if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
        ):
            yield content, key
            yield from places(content[key])

    made, said = 0, []
    for container, key in [*places(whole)]:
        before = container[key]
        for value in (5, None, [{}], {"a": [1]}):
            container[key] = value
            (run / file).write_text(json.dumps(whole))
            try:
                page(run / "model")
                made += 1
            except MtlError as error:
                said.append(str(error))
        container[key] = before
    assert made > len(said) > 5
    assert not [line for line in said if "\n" in line]


def test_what_lies_beside_a_recipe_is_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model or data in a folder there have names as on the hub; others of such names are there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "bases" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "parts" / "data").mkdir(parents=True)
    task = TaskSpec("a", ("x", "y"), train=("parts/data", "me/data@v1"), dev="me/other", test=0.1)
    found = located(Recipe("bases/mine", [task], folder=tmp_path / "recipes"))
    assert cards.base_of(found["model"]) is None
    assert found["task"]["a"]["train"] == ("parts/data", "hf://datasets/me/data@v1")
    assert cards.public_data(found["task"]["a"]["dev"]) == {"dataset": "me/other", "file": "me/other"}
    assert found["task"]["a"]["test"] == 0.1


def test_what_a_page_says_of_its_base_and_its_metrics(run: Path) -> None:
    """The base's licence, where it is known; a metric that is no number is none of model-index."""
    results = json.loads((run / "results.json").read_text())
    results["base"] = cards.base_of("all-MiniLM-L6-v2")
    results["metrics"]["test"]["vowel"] = {"accuracy": 0.5, "f1": float("nan")}
    (run / "results.json").write_text(json.dumps(results))
    known = head_of(page(run / "model"))
    assert known["license"] == "apache-2.0"
    assert known["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    (test,) = [each for each in known["model-index"][0]["results"] if each["dataset"]["split"] == "test"]
    assert [metric["type"] for metric in test["metrics"]] == ["accuracy"]


def test_a_page_without_its_run(run: Path, heads: MultiTaskModel) -> None:
    (run / "results.json").write_text("{")
    with pytest.raises(WeightsError, match=r"results.json is damaged .*; train with --resume"):
        page(run / "model")
    content = {"tasks": {"other": {}}, "training": {}, "rows": {}, "metrics": {}, "versions": {}}
    (run / "results.json").write_text(json.dumps(content))
    assert "Metrics" not in page(run / "model")  # another model's


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_cell_stays_in_its_cell(text: str) -> None:
    lines = markdown([("a", "b"), (text, "x")]).split("\n")
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)\|", re.sub(r"\\\\", "", lines[2]))) == 3
    assert "\n" not in cell(text)


def test_push_of_a_run(run: Path, hub: WritableHub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push", str(run), "me/demo", "--message", "The first one"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"{hub.url}/me/demo/commit/[0-9a-f]{{40}}\n", said.out)
    assert (
        "note: not pushed, since they are no part of the model: .env, checkpoints/config.json, rows.jsonl" in said.err
    )
    files = hub.repositories["me/demo"].branches["main"]
    expected = {path.relative_to(run / "model").as_posix(): path for path in (run / "model").rglob("*")}
    for name, content in files.items():
        if name not in (".gitattributes", "README.md"):
            assert content == expected[name].read_bytes(), name
    assert {"model.safetensors", "tasks.safetensors", "1_Pooling/config.json", "tokenizer.json"} <= files.keys()
    assert files["README.md"].decode() == (run / "model" / "README.md").read_text().replace(PLACEHOLDER, "me/demo")
    assert PLACEHOLDER not in files["README.md"].decode()
    assert not hub.repositories["me/demo"].private
    sent = b"".join(body for *_, body in hub.log)
    assert TOKEN.encode() not in sent
    assert (run / "model" / "rows.jsonl").read_bytes() not in sent
    (commit,) = [body for _, path, body in hub.log if "/commit/" in path]
    assert json.loads(commit.splitlines()[0])["value"]["summary"] == "The first one"


def test_push_with_graphs(run: Path, hub: WritableHub, capsys: pytest.CaptureFixture[str]) -> None:
    """They go in the same commit as the rest; the page is the run's."""
    with pytest.raises(SystemExit, match="0"):
        main(["push", str(run), "me/demo", "--onnx"])
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/demo/commit/")
    files = hub.repositories["me/demo"].branches["main"]
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "model.safetensors", "modules.json"} <= files.keys()
    assert files["README.md"].decode() == (run / "model" / "README.md").read_text().replace(PLACEHOLDER, "me/demo")
    model = MultiTaskModel.from_pretrained(run)
    assert model.push_to_hub("me/same", onnx=True, private=True).startswith(f"{hub.url}/me/same/commit/")
    assert hub.repositories["me/same"].private
    assert hub.repositories["me/same"].branches["main"].keys() == files.keys()
    model.push_to_hub("me/same", onnx=False, private=True)  # the older graphs go
    assert "onnx/model.onnx" not in hub.repositories["me/same"].branches["main"]


def test_graphs_need_their_extra(tiny: SentenceEncoder, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"ONNX needs onnxscript; in the clone of mtl: pip install -e '\.\[onnx"):
        tiny.push_to_hub("me/x", onnx=True)
    assert not hub.log


def test_push_to_hub_and_what_is_stale(heads: MultiTaskModel, tiny: SentenceEncoder, hub: WritableHub) -> None:
    assert heads.push_to_hub("me/x", private=True).startswith(f"{hub.url}/me/x/commit/")
    repository = hub.repositories["me/x"]
    assert repository.private
    repository.branches["main"] |= {"picture.png": b"x", "onnx/model.onnx": b"old", "LICENSE": b"mine"}
    assert tiny.push_to_hub("me/x", private=True, create_pr=True) == f"{hub.url}/me/x/discussions/1"
    assert "tasks.json" in repository.branches["main"]
    proposed = repository.branches["refs/pr/1"]
    assert not proposed.keys() & {"tasks.json", "tasks.safetensors", "onnx/model.onnx"}  # the older model's
    assert proposed.keys() >= {"picture.png", "LICENSE", "model.safetensors"}
    tiny.push_to_hub("me/x", revision="v2", commit_message="two")
    assert "tasks.json" not in repository.branches["v2"]
    assert "tasks.json" in repository.branches["main"]
    tiny.push_to_hub("me/x", revision="refs/pr/1", commit_message="an answer to the review")
    assert not any("/branch/refs" in path for _, path, _ in hub.log)
    with pytest.raises(AttributeError, match="called push_to_hub here"):
        tiny.save_to_hub("me/x")


def test_what_is_not_pushed(tiny: SentenceEncoder, folder: Path, hub: WritableHub) -> None:
    tiny.push_to_hub("me/public")
    with pytest.raises(WeightsError, match="me/public is on the hub already, and public; make it private"):
        tiny.push_to_hub("me/public", private=True)
    hub.repositories["me/public"].ignored = ("*.safetensors",)
    hub.repositories["me/public"].branches["main"].clear()
    with pytest.raises(WeightsError, match=r"has a .gitignore that keeps out model.safetensors"):
        tiny.push_to_hub("me/public")
    count = len(hub.log)
    for name in ("x", "me/x/y", "me/..", "", "me/x\n"):
        with pytest.raises(InputError, match="is no name on the hub; expected owner/name"):
            tiny.push_to_hub(name)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError):
        push(folder, "me/damaged")
    assert len(hub.log) == count


@pytest.mark.parametrize("status", [401, 403, 404, 413, 500])
def test_no_error_shows_a_token(
    tiny: SentenceEncoder, hub: WritableHub, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "an-old-token-of-another-form"
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for place in ("/api/repos", "/api/models/me/x/commit", "/lfs/"):
        hub.fails = (place, status, {"error": f"what is {other}, or {TOKEN}? Bearer {other}"})
        with pytest.raises(WeightsError) as failed:
            tiny.push_to_hub("me/x", token=other if place == "/api/repos" else None)
        line = str(failed.value)
        assert re.match(r"me/x was not pushed \(", line)
        assert "\n" not in line
        assert TOKEN not in line
        assert other not in line or place != "/api/repos"
        assert failed.value.__suppress_context__
        hub.fails = None


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} x", "hf_é" + TOKEN, ""])
def test_a_token_that_no_header_takes(tiny: SentenceEncoder, hub: WritableHub, token: str) -> None:
    with pytest.raises(InputError, match="token is no token of the hub") as failed:
        tiny.push_to_hub("me/x", token=token)
    assert TOKEN not in str(failed.value)
    assert not hub.log


def test_card_writes_the_page_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["card", *map(str, arguments)])
        return ended.value.code, *capsys.readouterr()

    assert call(run)[:2] == (0, (run / "model" / "README.md").read_text())
    (tmp_path / "page.md").write_text("mine")
    code, _, error = call(run, "-o", tmp_path / "page.md")
    assert code == 1
    assert "page.md exists; --overwrite replaces it" in error
    assert call(run, "-o", tmp_path / "page.md", "--overwrite")[0] == 0
    assert (tmp_path / "page.md").read_text() == page(run / "model")
