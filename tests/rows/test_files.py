"""Which files a split is in: lists, globs, folders and the hub's datasets, and what is refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, serving

from mtl.errors import InputError, MtlError
from mtl.rows.files import check_shards, files_of

ROW = '{"text": "a", "label": "x"}\n'


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)


def found(folder: Path, source: str | tuple[str, ...], split: str = "train") -> list[str]:
    return [str(path.relative_to(folder)) for path in files_of(source, split, folder)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("b.jsonl", ["b.jsonl"]),
        (("b.jsonl", "a.jsonl"), ["b.jsonl", "a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/part-?.jsonl", ["parts/deep/part-2.jsonl", "parts/part-1.jsonl"]),
        ("parts", ["parts/deep/part-2.jsonl", "parts/part-1.jsonl"]),
        ("[x].csv", ["[x].csv"]),  # a file of that very name, and no glob
        ("a\0b", ["a\0b"]),
        ("missing.jsonl", ["missing.jsonl"]),  # whoever opens it says so
    ],
)
def test_sources(tmp_path: Path, source: str | tuple[str, ...], names: list[str]) -> None:
    touch(
        tmp_path, "a.jsonl", "b.jsonl", "parts/part-1.jsonl", "parts/deep/part-2.jsonl", "parts/.hidden.csv", "[x].csv"
    )
    assert found(tmp_path, source) == names
    assert [str(path) for path in files_of(str(tmp_path / "*.jsonl"), "train", Path("/"))] == [
        str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")
    ]


def test_a_folder_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each split has the files that are named after it, or that lie in a folder that is."""
    shards = [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    touch(tmp_path, *shards, "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    touch(tmp_path, "data/README.md", "data/more.jsonl", "by/train/1.csv", "by/dev/1.csv", "by/training-2.csv")
    assert found(tmp_path, "data") == shards
    assert found(tmp_path, "data", "dev") == ["data/validation-00000-of-00001.parquet"]
    assert found(tmp_path, "data", "test") == ["data/test-00000-of-00001.parquet"]
    assert found(tmp_path, "by") == ["by/train/1.csv", "by/training-2.csv"]
    assert "README.md among them: they end in none of" in caplog.text
    assert "more.jsonl among them: they are named after no split" in caplog.text
    with pytest.raises(InputError, match="by has no file that is named after test; it has dev/1.csv, train/1.csv"):
        found(tmp_path, "by", "test")


def test_json_beside_other_formats_is_about_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    about = "dataset_infos.json"
    touch(tmp_path, f"hub/train/{about}", "hub/train/a.parquet", "own/train.json", "own/dev.json.gz", f"own/{about}")
    assert found(tmp_path, "hub") == ["hub/train/a.parquet"]
    assert caplog.text.endswith("dataset_infos.json among them: they are .json beside data, and named after no split\n")
    assert found(tmp_path, "own", "dev") == ["own/dev.json.gz"]
    assert found(tmp_path, "own") == ["own/train.json"]
    touch(tmp_path, "in/train/a.json", "in/test/test.json")
    assert found(tmp_path, "in") == ["in/train/a.json"]


@pytest.mark.parametrize(
    ("names", "source", "message"),
    [
        (["a.csv"], "*.jsonl", r"train = '\*.jsonl': no file in .* is called so"),
        (["d/a.csv", "d/b.jsonl"], "d", r"d has files of several formats \(.csv, .jsonl\); expected one, as by \*.csv"),
        (["a.csv", "b.jsonl"], "*", r"\* has files of several formats"),
        (["d/train.jsonl", "d/train.json", "d/train.ndjson"], "d", r"several formats \(.json, .jsonl, .ndjson\)"),
        (["d/notes.md"], "d", "d has no file that ends in one of .txt, .*; it has notes.md"),
        (["d/.hidden.csv"], "d", "d has no file that ends in one of .*; it has none"),
        (["a.csv"], ("a.csv", "*.csv"), r"train: .*a.csv is there twice; expected each file once"),
        (["a.csv"], ("a.csv", "./b/../a.csv"), r"is there twice"),
        (["one/train.csv", "two/train.csv"], ".", r"has train data of 2 datasets; expected one, as .*/one or .*/two"),
        (["d/t-00000-of-00003.csv", "d/t-00002-of-00003.csv"], "d", "lacks 1 shard of 3, t-00001-of-00003.csv first"),
        (["d/t-00000-of-00001.csv", "d/t-00000-of-00002.csv"], "d", "d has t in 1 and 2 shards; expected one set"),
    ],
)
def test_mistakes(tmp_path: Path, names: list[str], source: str | tuple[str, ...], message: str) -> None:
    touch(tmp_path, *names)
    (tmp_path / "b").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message) as caught:
        found(tmp_path, source)
    assert str(caught.value).isprintable()


def test_a_file_under_another_name_is_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    with pytest.raises(InputError, match=r"b.csv is there twice, also as .*a.csv"):
        found(tmp_path, "*.csv")


CODE = """
import logging, sys
from mtl.errors import MtlError
from mtl.rows.files import files_of
logging.basicConfig(format="log: %(message)s")
for source in sys.argv[1:]:
    try:
        print(*(path.read_text() for path in files_of(source, "train")), sep="|")
    except MtlError as error:
        print(f"error: {error}")
"""


def test_datasets_on_the_hub(tmp_path: Path) -> None:
    """By name, by folder and by glob: the split's own files, as the hub lists them; another content is refused."""
    repo = tmp_path / "hub" / "me" / "data"
    for name in ("plain/train-00000-of-00002.parquet", "plain/train-00001-of-00002.parquet", "plain/test.parquet",
                 "README.md", "more/train.csv"):  # fmt: skip
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(name)
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "own"),
        "PATH": os.environ["PATH"],
    }

    def run(*sources: str, **more: str) -> list[str]:
        command = [sys.executable, "-c", CODE, *sources]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment | more, cwd=tmp_path, check=False
        )
        return (done.stdout + done.stderr).splitlines()

    both = "plain/train-00000-of-00002.parquet|plain/train-00001-of-00002.parquet"
    with serving(tmp_path / "hub") as hub:
        here = {"HF_ENDPOINT": hub.url}
        lines = run(
            "hf://datasets/me/data/plain", f"me/data@{COMMIT}", "hf://datasets/me/data@main/plain/train-*.parquet",
            "hf://datasets/me/data/more/*", "hf://datasets/me/none", "me/data@v9", "hf://datasets/me/data/*.tsv",
            **here,
        )  # fmt: skip
        assert lines[:4] == [
            both,
            "error: me/data has train data of 2 datasets; expected one, as me/data/more or me/data/plain",
            both,
            "more/train.csv",
        ]
        assert lines[4].startswith("error: me/none is not on the hub, or is private")
        assert lines[5].startswith("error: me/data has no such revision")
        assert lines[6].startswith("error: me/data/*.tsv: no file of the dataset is called so; it has README.md, more")
        requests = " ".join(hub.requests)
        assert not {"README.md", "test.parquet"} & {*requests.replace("/", " ").split()}
        hub.hashes = lambda path: {"size": 3, "blobId": "0" * 40}
        for source in ("hf://datasets/me/data/more", "hf://datasets/me/data@main/more/train.csv"):
            assert "has another hash than the hub lists" in run(source, **here)[0]
    offline = run("hf://datasets/me/data/plain", HF_HUB_OFFLINE="1")
    assert offline[0] == both
    assert "the hub cannot be reached" in offline[1]
    assert "cannot be reached" in run("me/other", HF_HUB_OFFLINE="1")[0]


def test_an_address_that_is_none() -> None:
    with pytest.raises(MtlError, match="is no address of data"):
        files_of("hf://me/data", "train")


def test_a_name_may_speak_of_any_number_of_shards() -> None:
    with pytest.raises(InputError, match="lacks 9999999998 shards of 9999999999, a-00001-of-9999999999 first"):
        check_shards(["a-00000-of-9999999999", "a-99999999999-of-9999999999"], "here")
