"""From a name to verified files: folders, the installed wheel, and a hub of our own through HF_ENDPOINT."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from checkpoints.folders import split_in_shards
from conftest import WORDS
from hub import COMMIT, serving

from mtl import SentenceEncoder
from mtl.checkpoints import fetch as fetching
from mtl.checkpoints.fetch import check, fetch, find, manifest, sha256_of, stamped_sha256, stamps_path
from mtl.checkpoints.fields import SENTENCE_CONFIGS
from mtl.checkpoints.listing import pinned_models
from mtl.errors import WeightsError

CODE = """
import logging, pathlib, sys
import mtl.checkpoints.fetch
from mtl.errors import MtlError
from mtl.rows.files import files_of
logging.basicConfig(format="log: %(message)s")
mtl.checkpoints.fetch.MANIFEST = pathlib.Path(sys.argv[1])
try:
    data = sys.argv[2].startswith("hf:")
    print(files_of(sys.argv[2], "train")[0] if data else mtl.checkpoints.fetch.fetch(sys.argv[2]))
except MtlError as error:
    print(f"error: {error}")
"""


@pytest.fixture(autouse=True)
def own_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path, folder: Path) -> Path:
    """The tiny model as me/tiny on the hub, with files beside it that must not be downloaded."""
    repo = tmp_path / "hub" / "me" / "tiny"
    shutil.copytree(folder, repo)
    (repo / "pytorch_model.bin").write_bytes(b"pickle")
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")
    return repo


@pytest.fixture
def pinned(tmp_path: Path, repository: Path) -> Path:
    """A manifest that pins me/tiny as tiny-model."""
    lines = [
        "[tiny-model]",
        'hub = "me/tiny"',
        f'revision = "{COMMIT}"',
        'licence = "MIT"',
        "dim = 12",
        "[tiny-model.files]",
    ]
    for file in ("model.safetensors", "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        content = (repository / file).read_bytes()
        lines.append(f'"{file}" = {{ bytes = {len(content)}, sha256 = "{hashlib.sha256(content).hexdigest()}" }}')
    path = tmp_path / "manifest.toml"
    path.write_text("\n".join(lines))
    return path


def run(pinned: Path, name: str, endpoint: str, tmp_path: Path, **environment: str) -> str:
    """What fetching prints, in a process of its own: the hub's client reads its settings once, at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(pinned), name],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "\r" not in done.stderr  # no bars where nobody looks
    return done.stdout + done.stderr


def test_pinned_model_from_the_hub_and_then_from_the_cache(pinned: Path, repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "hub") as hub:
        first = run(pinned, "tiny-model", hub.url, tmp_path)
        asked = list(hub.requests)
        second = run(pinned, "me/tiny", hub.url, tmp_path)
        assert hub.requests == asked  # nothing asked again
    third = run(pinned, "tiny-model", hub.url, tmp_path)  # nor needed
    assert first == second == third
    found = Path(first.strip())
    assert (found / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    assert (found / "1_Pooling" / "config.json").is_file()


def test_a_file_that_differs_from_its_hash(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """The hub's client would take it: the length is right."""
    path = repository / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with serving(tmp_path / "hub") as hub:
        printed = run(pinned, "tiny-model", hub.url, tmp_path)
    assert "error: " in printed
    assert "model.safetensors has sha256" in printed
    assert "delete" in printed


def test_another_repository_by_branch(pinned: Path, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "hub" / "me" / "other")
    with serving(tmp_path / "hub") as hub:
        printed = run(pinned, "me/other@main", hub.url, tmp_path)
        assert not any("onnx" in request or ".bin" in request for request in hub.requests)
    assert f"log: me/other: commit {COMMIT}, for which no hash is known" in printed
    assert (Path(printed.splitlines()[0]) / "modules.json").is_file()


@pytest.mark.slow
def test_large_files_have_the_hubs_own_hashes(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """By which they are called in its client's cache, that looks at their lengths alone."""
    with serving(tmp_path / "hub") as hub:
        hub.large = (".safetensors",)
        printed = run(pinned, "me/tiny@main", hub.url, tmp_path)
        assert f"log: me/tiny: commit {COMMIT}, whose weights have the hub's own hashes" in printed
        blob = (Path(printed.splitlines()[0]) / "model.safetensors").resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"!")
        damaged = run(pinned, "me/tiny@main", hub.url, tmp_path)
        assert re.search(rf"error: {blob} has sha256 .*, expected .*; delete {blob} and fetch it again", damaged)
        blob.unlink()
        assert run(pinned, "me/tiny@main", hub.url, tmp_path) == printed
    with serving(tmp_path / "hub") as hub:
        hub.large = ("tokenizer.json",)
        other = tmp_path / "other"
        other.mkdir()
        blob = (Path(run(pinned, "me/tiny@main", hub.url, other).splitlines()[0]) / "tokenizer.json").resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b" ")
        assert f"error: {blob} has sha256" in run(pinned, "me/tiny@main", hub.url, other)


def test_only_what_is_read_is_fetched(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """Of JSON and safetensors too: neither data nor other forms of the weights, whatever an index lists."""
    others = ("data/rows.json", "results.json", "openvino/config.json", "model.fp16.safetensors", "notes/vocab.txt.bak",
              "tf_model.h5", "adapters/x/model.safetensors", "1_Pooling/README.md")  # fmt: skip
    for name in others:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(b"{}")
    index = {"weight_map": {"a": "*.bin", "b": "*", "c": "../../x.safetensors", "d": "[abc]*.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    with serving(tmp_path / "hub") as hub:
        printed = run(pinned, "me/tiny@main", hub.url, tmp_path)
        asked = {request.partition(f"/resolve/{COMMIT}/")[2] for request in hub.requests}
    assert {"model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= asked
    assert not asked & {*others, "pytorch_model.bin", "onnx/config.json"}
    assert (SentenceEncoder.from_pretrained(printed.splitlines()[0]).encode("a") != 0).any()


def test_every_file_that_is_read_is_fetched() -> None:
    """By the names that stand in the code."""
    sources = ("load", "modules", "tokenizer", "tokenizer_kinds", "fields", "files", "sentencepiece")
    folder = Path(fetching.__file__).parent
    names = {name for source in sources for name in re.findall(
        r'"(?:\w+/)?([\w.-]+\.(?:json|txt|model|jinja))"', (folder / f"{source}.py").read_text())}  # fmt: skip
    assert len(names) > 12
    assert not [name for name in names if not any(fnmatch(name, x) for x in (*fetching.OF_PARTS, *fetching.OF_ALL))]
    assert all(fnmatch(name, "sentence_*_config.json") for name in SENTENCE_CONFIGS)


def test_a_repository_that_has_moved(pinned: Path, repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "hub") as hub:
        hub.moved = {"me/before": "me/tiny"}
        printed = run(pinned, "me/before", hub.url, tmp_path)
    assert (Path(printed.splitlines()[0]) / "model.safetensors").is_file()


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_hub_that_refuses(pinned: Path, tmp_path: Path, status: int) -> None:
    with serving(tmp_path / "hub") as hub:
        hub.fails = {"/": status}
        printed = run(pinned, "me/tiny@main", hub.url, tmp_path)
    assert printed.count("\n") == 1
    assert f"answers {status} (" in printed
    advice = "log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else "try again later"
    assert printed.endswith(f"; {advice}, or give a local folder\n")


@pytest.mark.slow
def test_what_was_cut_off_goes_on(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """Without the hub, settings alone are no model; with it, the rest is fetched."""
    weights = (repository / "model.safetensors").read_bytes()
    with serving(tmp_path / "hub") as hub:
        hub.fails = {f"/me/tiny/resolve/{COMMIT}/model.safetensors": 404}
        assert "error: me/tiny" in run(pinned, "me/tiny@main", hub.url, tmp_path)
        offline = run(pinned, "me/tiny@main", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
        assert "error: me/tiny is not in the local cache" in offline
        assert offline.count("\n") == 1
        hub.fails = {}
        printed = run(pinned, "me/tiny@main", hub.url, tmp_path)
    assert (Path(printed.splitlines()[0]) / "model.safetensors").read_bytes() == weights
    again = run(pinned, "me/tiny@main", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert again.splitlines()[0] == printed.splitlines()[0]


def test_a_repository_of_an_older_form(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """0_Transformer/ with a vocabulary alone, its weights in shards, from a pull request; checkpoints stay there."""
    other = tmp_path / "hub" / "me" / "older"
    (other / "0_Transformer").mkdir(parents=True)
    shutil.copytree(repository / "1_Pooling", other / "1_Pooling")
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.copy(repository / name, other / "0_Transformer" / name)
    (other / "0_Transformer" / "vocab.txt").write_text("\n".join(WORDS))
    split_in_shards(other / "0_Transformer")
    modules = json.loads((repository / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (other / "modules.json").write_text(json.dumps(modules))
    (other / "checkpoint-500").mkdir()
    (other / "checkpoint-500" / "model.safetensors").write_bytes(b"x")
    with serving(tmp_path / "hub") as hub:
        hub.branches.add("refs/pr/3")
        printed = run(pinned, "me/older@refs/pr/3", hub.url, tmp_path)
        assert not any("checkpoint-500" in request for request in hub.requests)
    folder = Path(printed.splitlines()[0])
    vectors = [SentenceEncoder.from_pretrained(x).encode(["a b", "c"]) for x in (folder, repository)]
    assert (vectors[0] == vectors[1]).all()


def test_a_repository_of_pickles(pinned: Path, repository: Path, tmp_path: Path) -> None:
    (repository / "model.safetensors").unlink()
    with serving(tmp_path / "hub") as hub:
        plain = run(pinned, "me/tiny@main", hub.url, tmp_path)
        pull = {"num": 7, "title": "Adding `safetensors` variant of this model", "isPullRequest": True, "pinned": False,
                "status": "open", "author": {"name": "SFconvertbot"}, "createdAt": "2023-01-01T00:00:00.000Z",
                "repo": {"name": "me/tiny", "type": "model"}}  # fmt: skip
        hub.discussions.append(pull)
        with_bot = run(pinned, "me/tiny@main", hub.url, tmp_path)
    assert "error: me/tiny holds no safetensors at this revision; pickles are never opened" in plain
    assert "error: me/tiny holds no safetensors at this revision; its conversion, a pull" in with_bot
    assert "me/tiny@refs/pr/7" in with_bot


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/nothing", "me/nothing is not on the hub, or is private; check its name"),
        ("me/tiny@v9", "me/tiny has no such revision; check it"),
    ],
)
def test_not_on_the_hub(pinned: Path, tmp_path: Path, name: str, message: str) -> None:
    with serving(tmp_path / "hub") as hub:
        assert f"error: {message}" in run(pinned, name, hub.url, tmp_path)


def test_a_pinned_file_that_the_hub_lacks(pinned: Path, repository: Path, tmp_path: Path) -> None:
    (repository / "modules.json").unlink()
    with serving(tmp_path / "hub") as hub:
        assert "error: me/tiny lacks a file" in run(pinned, "tiny-model", hub.url, tmp_path)


def test_a_dataset_s_file(pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "me" / "data" / "parts").mkdir(parents=True)
    (tmp_path / "hub" / "me" / "data" / "parts" / "train.csv").write_text("text,label\na,b\n")
    with serving(tmp_path / "hub") as hub:
        printed = run(pinned, f"hf://datasets/me/data@{COMMIT}/parts/train.csv", hub.url, tmp_path)
        absent = run(pinned, "hf://datasets/me/data@main/parts/test.csv", hub.url, tmp_path)
    assert Path(printed.strip()).read_text() == "text,label\na,b\n"
    assert "error: me/data has no file 'parts/test.csv'; it has parts/train.csv" in absent
    assert "is no address of data; expected hf://datasets/owner/name@revision/path" in run(
        pinned, "hf://me/data", "http://127.0.0.1:9", tmp_path
    )


@pytest.mark.parametrize(
    "revision", ["@refs/convert/parquet", "@~parquet", "@refs%2Fconvert%2Fparquet", "@refs/pr/12", ""]
)
def test_a_dataset_s_revisions(revision: str) -> None:
    """What of an address is the revision, and what the file."""
    found = fetching.data_address(f"hf://datasets/me/data{revision}/default/train/0000.parquet")
    wanted = {"": None, "@refs/pr/12": "refs/pr/12"}.get(revision, "refs/convert/parquet")
    assert found == ("me/data", wanted, "default/train/0000.parquet")


def test_a_dataset_s_conversion_from_the_hub(pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "me" / "data" / "default").mkdir(parents=True)
    (tmp_path / "hub" / "me" / "data" / "default" / "0000.parquet").write_bytes(b"PAR1")
    with serving(tmp_path / "hub") as hub:
        hub.branches |= {"refs/convert/parquet"}
        printed = run(pinned, "hf://datasets/me/data@~parquet/default/0000.parquet", hub.url, tmp_path)
    assert Path(printed.strip()).read_bytes() == b"PAR1"


@pytest.mark.parametrize("name", ["tiny-model", "me/other"])
def test_hub_offline(pinned: Path, tmp_path: Path, name: str) -> None:
    printed = run(pinned, name, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert printed.count("\n") == 1
    assert "is not in the local cache and http://127.0.0.1:9 cannot be reached" in printed
    assert "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder" in printed


@pytest.mark.slow
def test_hub_unreachable(pinned: Path, tmp_path: Path) -> None:
    """The client tries again for some 20 s before it gives up."""
    printed = run(pinned, "tiny-model", "http://127.0.0.1:9", tmp_path)
    assert printed.count("\n") == 1
    assert "me/tiny is not in the local cache and http://127.0.0.1:9 cannot be reached" in printed


def test_unknown_name_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model is called 'all-MiniLM-L6-v3'; nearest: all-MiniLM-L6-v2"):
        fetch("all-MiniLM-L6-v3")
    with pytest.raises(WeightsError, match=r"'qqq'; expected .* of the hub with its owner, as sentence-transformers/q"):
        fetch("qqq")
    with pytest.raises(WeightsError, match="no model is called 'a b'; expected .* with its owner, as owner/name"):
        fetch("a b")
    with pytest.raises(WeightsError, match="'runs/mine' is no folder; expected a model's folder or name"):
        fetch("runs/mine")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match="begun is a run that has not ended; go on with `mtl train ... --resume`"):
        fetch(str(tmp_path / "begun"))
    with pytest.raises(WeightsError, match=r"'./nothing' is no folder"):
        fetch("./nothing")


def test_local_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fetch(str(folder)) == folder
    assert caplog.messages == []  # that no hash is known of one's own files goes without saying


def test_manifest_is_whole() -> None:
    for entry in manifest().values():
        assert len(entry.revision) == 40
        assert {"model.safetensors", "config.json"} <= entry.files.keys()
        assert all(len(sha256) == 64 and size > 0 for size, sha256 in entry.files.values())
        assert find(entry.hub) == find(entry.name) == entry


def test_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashed once; again when time or size change; a damaged file of stamps only costs time."""
    path = tmp_path / "file"
    path.write_text("one")
    hashed = []
    real = fetching.sha256_of
    monkeypatch.setattr(fetching, "sha256_of", lambda p: hashed.append(p) or real(p))
    one = stamped_sha256(path)
    assert stamped_sha256(path) == one == hashlib.sha256(b"one").hexdigest()
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    assert stamped_sha256(path) == one
    assert len(hashed) == 2
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as tools do that keep times
    assert stamped_sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.write_text("three")
    assert stamped_sha256(path) == hashlib.sha256(b"three").hexdigest()
    for damage in ("{", "[]", json.dumps({str(path): [1]})):
        stamps_path().write_text(damage)
        assert stamped_sha256(path) == hashlib.sha256(b"three").hexdigest()
    assert len(hashed) == 7


def test_stamps_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert stamped_sha256(tmp_path / "file") == hashlib.sha256(b"one").hexdigest()


def test_check(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(WeightsError, match="cannot be read"):
        check(path, 3, "0" * 64)
    path.write_text("one")
    with pytest.raises(WeightsError, match="has 3 bytes, expected 4"):
        check(path, 4, "0" * 64)
    with pytest.raises(WeightsError, match="has sha256 7692c3ad3540..., expected 000000000000..."):
        check(path, 3, "0" * 64)
    check(path, 3, hashlib.sha256(b"one").hexdigest())


def test_a_clone_keeps_what_it_fetches(pinned: Path, repository: Path, tmp_path: Path) -> None:
    """In weights/NAME beside its README, where it is found without the hub, and verified."""
    (tmp_path / "clone").mkdir()
    real = "fetch_pinned(mtl.checkpoints.fetch.find(sys.argv[2]), keep)"
    code = CODE.replace("fetch(sys.argv[2])", real).replace(
        "try:", "keep = mtl.checkpoints.fetch.CLONE = pathlib.Path(sys.argv[3])\ntry:"
    )
    code = re.sub("fetch = .*", "fetch_pinned = mtl.checkpoints.fetch.fetch_pinned", code)

    def fetched(url: str) -> str:
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", code, str(pinned), "tiny-model", str(tmp_path / "clone")]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    with serving(tmp_path / "hub") as hub:
        first = fetched(hub.url)
    folder = tmp_path / "clone" / "tiny-model"
    assert first == fetched("http://127.0.0.1:9") == f"{folder}\n"
    assert (folder / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    (folder / "config.json").write_text("{}")
    assert "config.json has 2 bytes, expected" in fetched("http://127.0.0.1:9")


def weights(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command() -> None:
    listed = weights("list")
    assert listed.returncode == 0
    assert "all-MiniLM-L6-v2" in listed.stdout
    assert "installed" in listed.stdout
    fetched = weights("fetch", "all-MiniLM-L6-v2")
    assert (Path(fetched.stdout.strip()) / "model.safetensors").is_file()
    verified = weights("verify", "all-MiniLM-L6-v2")
    assert verified.returncode == 0
    assert verified.stdout.count("ok  ") == 8


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fetch", "nonsense"], 1, "error: no model is called 'nonsense'"),
        (["verify", "nonsense"], 1, "error: no hashes are known for 'nonsense'"),
        (["fetch"], 2, "Missing argument"),
    ],
)
def test_the_command_refuses(arguments: list[str], code: int, message: str) -> None:
    done = weights(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_models_are_listed_alike() -> None:
    """By ``mtl models`` as by ``python -m weights list``; a width that is stated is the model's."""
    listed = pinned_models()
    assert weights("list").stdout == listed + "\n"
    here = [line.split() for line in listed.splitlines() if line.endswith("installed")]
    assert [row[:4] for row in here] == [["all-MiniLM-L6-v2", "384", "91", "Apache-2.0"]]
    assert json.loads((fetch(here[0][0]) / "config.json").read_text())["hidden_size"] == 384


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "~nobody/x", "../a/b", "a/..", "../x@main", "a//b", "é/ü"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(WeightsError, match=r"no model is called|is no folder"):
        fetch(name)


@pytest.mark.parametrize("address", ["a/b@main/../../x", "../x@main/y", "a/b@../x", "a/b@main/x/../../../y", "a/b@/x"])
def test_addresses_that_lead_elsewhere(address: str) -> None:
    with pytest.raises(WeightsError, match="is no address of data; expected"):
        fetching.data_address(f"hf://datasets/{address}")


@pytest.mark.parametrize(
    "content",
    ["[", "a = 1", "[a]\nfiles = 1", '[a]\nhub = "x"\n[a.files]\n"x" = 1', "a = " + "[" * 100_000,
     '[a]\nhub = "x"\nrevision = "1"\nlicence = "x"\ndim = 3\n[a.files]\n"../x" = { bytes = 1, sha256 = "0" }'],
)  # fmt: skip
def test_a_damaged_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "manifest.toml").write_text(content)
    monkeypatch.setattr(fetching, "MANIFEST", tmp_path / "manifest.toml")
    with pytest.raises(WeightsError, match="manifest.toml cannot be read .*; install this package again"):
        manifest()


@pytest.fixture
def in_parts(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetching.Pinned:
    """The tiny model as a zip in the parts of three installed packages, with files that are none of the model's."""
    archive = tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in [path for path in repository.rglob("*") if path.is_file()]:
            file.write(path, f"tiny/{path.relative_to(repository)}")
    content, site = archive.read_bytes(), tmp_path / "site"
    for i in range(3):
        (site / f"part_{i}-1.dist-info").mkdir(parents=True)
        (site / f"part_{i}-1.dist-info" / "METADATA").write_text(f"Name: part-{i}\nVersion: 1\n")
        (site / f"tiny.zip.{i}").write_bytes(content[i * len(content) // 3 : (i + 1) * len(content) // 3])
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(fetching, "CLONE", tmp_path / "no clone")
    paths = [repository / name for name in ("config.json", "model.safetensors", "1_Pooling/config.json")]
    files = {str(path.relative_to(repository)): (path.stat().st_size, sha256_of(path)) for path in paths}
    parts = tuple(f"part-{i}/tiny.zip.{i}" for i in range(3))
    return fetching.Pinned("tiny", "me/tiny", COMMIT, "MIT", 12, files, archive=parts)


def test_an_archive_in_parts(in_parts: fetching.Pinned, repository: Path, tmp_path: Path) -> None:
    """Once, to the cache; the manifest's files alone, whole or not at all."""
    folder = fetching.fetch_pinned(in_parts)
    assert folder == tmp_path / "cache" / "mtl" / "tiny"
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert held == set(in_parts.files)
    assert all((folder / name).read_bytes() == (repository / name).read_bytes() for name in held)
    (tmp_path / "site" / "tiny.zip.1").unlink()
    assert fetching.fetch_pinned(in_parts) == folder
    (folder / "config.json").unlink()
    assert fetching.on_this_machine(in_parts) is None
    assert fetching.unpack(in_parts) is None  # a part is gone


@pytest.mark.parametrize("damage", ["cut", "other bytes", "another hash", "no such file", "in the way"])
def test_a_damaged_archive(in_parts: fetching.Pinned, tmp_path: Path, damage: str) -> None:
    part, files = tmp_path / "site" / "tiny.zip.1", dict(in_parts.files)
    if damage == "cut":
        (tmp_path / "site" / "tiny.zip.2").write_bytes(b"")
    elif damage == "other bytes":
        part.write_bytes(bytes(len(part.read_bytes())))
    elif damage == "another hash":
        files["config.json"] = (files["config.json"][0], "0" * 64)
    elif damage == "no such file":
        files["x.json"] = (1, "0" * 64)
    else:
        (tmp_path / "cache" / "mtl" / "tiny").mkdir(parents=True)
        (tmp_path / "cache" / "mtl" / "tiny" / "x").touch()
    with pytest.raises(WeightsError, match="cannot be unpacked to|lacks files of tiny; delete it") as error:
        fetching.unpack(dataclasses.replace(in_parts, files=files))
    assert str(error.value).isprintable()
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "x"]
    assert left == []
