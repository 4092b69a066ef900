"""The inputs of adversary.py, in groups; each gives its cases for a workspace with a tiny model and its files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adversary import Case, Outcome, call, command
from conftest import WORDS, randomized
from safetensors.torch import load_file, save_file

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.checkpoints.tokenizer import wordpiece
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.pooling import Dense, Normalize
from mtl.tasks.spec import TaskSpec

NUMBER = count()
ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PY": sys.executable, "PYTHONPATH": str(ROOT)}


def tiny(folder: Path) -> Checkpoint:
    """As the tests' tiny model, with a Dense layer and prompts, so that every kind of file is there."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config = EncoderConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, n_layers=2, n_heads=3, dim=12, hidden_dim=20
    )
    after = (Dense(12, 5), Normalize())
    tokenizer = wordpiece(folder / "vocab.txt", {})
    return Checkpoint(randomized(DistilBert(config)), tokenizer, 16, after=after, prompts={"q": "a "})


def workspace(folder: Path) -> tuple[Path, Path]:
    """A model's folder, and one with heads."""
    checkpoint = tiny(folder)
    save(checkpoint, folder / "tiny")
    tasks = [TaskSpec("topic", ("x", "y")), TaskSpec("tags", ("p", "q"), kind="multi-label")]
    MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), tasks).save(folder / "heads")
    return folder / "tiny", folder / "heads"


def finite(outcome: Outcome) -> bool:
    """A table of numbers, none of them nan or inf."""
    return "shape (" in outcome.stdout and "nan" not in outcome.stdout and "inf" not in outcome.stdout


def names_of_models(folder: Path, model: Path) -> Iterator[Case]:
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    for name in ("", " ", ".", "..", "/", "nonsense", "all-MiniLM", "./no", "~nobody/x", "x" * 5000, "a\nb", "é", "-",
                 "../../etc", "/dev/null", "/etc/passwd", "a//b", "../a@main", "empty", "file", "tiny/config.json",
                 "hf://datasets/a/b@c/d", "http://127.0.0.1:9/x", "*", "$HOME", "'", "\udcff"):  # fmt: skip
        for verb in ("embed", "predict"):
            yield Case(f"{verb} --model {name[:30]!r}", partial(command, verb, f"--model={name}", "--", "a"))
    yield Case("predict without heads", partial(command, "predict", "-m", model, "a"), says="no task heads")


def damaged(model: Path, change: Callable[[Path], object], verb: str = "embed") -> Outcome:
    """What a command says of a copy of the model that something was done to."""
    copy = model.with_name(f"damaged-{next(NUMBER)}")
    shutil.copytree(model, copy, symlinks=True)
    change(copy)
    try:
        return command(verb, "-m", copy, "a b", "c")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def edit(name: str, field: str, value: Any, folder: Path) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | {field: value}))


def edit_tensors(name: str, change: Callable[[torch.Tensor], torch.Tensor], folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path)


def put(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


def to_link(name: str, target: str, folder: Path) -> None:
    shutil.move(folder / name, folder.parent / f"moved-{next(NUMBER)}")
    (folder / name).symlink_to(target)


def to_pipe(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def to_folder(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def damaged_models(model: Path, heads: Path) -> Iterator[Case]:
    values = [None, True, -1, 0, 1.5, "12", [], {}, 10**9, 10**30, float("nan"), "x" * 2000]
    fields = {
        "config.json": ["model_type", "vocab_size", "n_layers", "n_heads", "dim", "hidden_dim", "dropout", "activation",
                        "max_position_embeddings", "sinusoidal_pos_embds", "initializer_range"],
        "sentence_bert_config.json": ["max_seq_length", "do_lower_case"],
        "config_sentence_transformers.json": ["prompts", "default_prompt_name"],
        "1_Pooling/config.json": ["pooling_mode", "include_prompt", "pooling_mode_cls_token"],
        "2_Dense/config.json": ["in_features", "out_features", "bias", "activation_function"],
    }  # fmt: skip
    for name, keys in fields.items():
        for key in keys:
            for value in values:
                act = partial(damaged, model, partial(edit, name, key, value))
                yield Case(f"{name}: {key} = {str(value)[:20]!r}", act, "either", right=finite)
    files = ["modules.json", "tokenizer.json", "model.safetensors", "2_Dense/model.safetensors", *fields]
    for name in files:
        for content in (b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}", b'[{"type": 1}]'):
            # without sentence-transformers' own files, the model is another, and embeds as it should
            expect = "either" if name in ("sentence_bert_config.json", "config_sentence_transformers.json",
                                          "1_Pooling/config.json") and content == b"{}" else "refused"  # fmt: skip
            yield Case(f"{name} is {content[:9]!r}", partial(damaged, model, partial(put, name, content)), expect)
        yield Case(f"{name} is a pipe", partial(damaged, model, partial(to_pipe, name)), says="neither file nor folder")
        yield Case(f"{name} is a folder", partial(damaged, model, partial(to_folder, name)))
        yield Case(f"{name} leads out", partial(damaged, model, partial(to_link, name, "/etc/hostname")), says="leads")
        yield Case(f"{name} leads nowhere", partial(damaged, model, partial(to_link, name, "nowhere")), says="nowhere")
        yield Case(f"{name} leads to itself", partial(damaged, model, partial(to_link, name, Path(name).name)))
    for path in ("../heads/2_Dense", "/etc", "", "../../../etc", "2_Dense/../../x", "x" * 5000, "\0", 7, None):
        modules = json.loads((model / "modules.json").read_text())
        modules[2]["path"] = path
        act = partial(damaged, model, partial(put, "modules.json", json.dumps(modules).encode()))
        yield Case(f"modules.json: path = {str(path)[:20]!r}", act)
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "NaN": lambda x: x.clone().fill_(torch.nan), "infinity": lambda x: x.clone().fill_(torch.inf),
        "int64": lambda x: x.long(), "bool": lambda x: x > 0, "another shape": lambda x: x[1:],
    }  # fmt: skip
    for tensor in ("embeddings.word_embeddings.weight", "transformer.layer.1.ffn.lin2.bias"):
        for kind, change in changes.items():
            yield Case(
                f"{tensor} of {kind}", partial(damaged, model, partial(edit_tensors, tensor, change)), says=tensor
            )
    for content in (
        b"",
        b"{",
        b"[{}]",
        b"[1]",
        b'[{"name": "topic"}]',
        b'[{"name": 7, "labels": 3}]',
        b"{}",
        b"[" * 10**5,
    ):
        yield Case(
            f"tasks.json is {content[:20]!r}", partial(damaged, heads, partial(put, "tasks.json", content), "predict")
        )


TEXTS: dict[str, tuple[bytes, str, str]] = {  # content, expectation, what is said
    "latin.txt": (b"fine\ncaf\xe9\n", "refused", "line 2: not UTF-8"),
    "utf16.txt": ("text".encode("utf-16"), "refused", "not UTF-8"),
    "nothing.txt": (b"", "right", ""),
    "ends.txt": (b"\xef\xbb\xbfa\r\nb\r\n\r\n", "right", ""),
    "nulls.txt": (b"a\0b\n\0\n", "right", ""),
    "long.txt": (b"a b " * 250_000, "right", ""),
    "many.txt": (b"a\n" * 9000, "right", ""),
    "marks.txt": (("e" + "\u0301" * 9000 + "\n\u202e\u200b\n😀\n").encode(), "right", ""),
    "open.jsonl": (b'{"text": "a"}\n{"text": \n', "refused", "line 2: not JSON"),
    "list.jsonl": (b'["a"]\n', "refused", "expected an object"),
    "deep.jsonl": (b"[" * 100_000, "refused", "deep.jsonl: not JSON"),
    "nan.jsonl": (b'{"text": "a", "x": NaN}\n', "refused", "not JSON"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "refused", "surrogate"),
    "number.jsonl": (b'{"text": 7}\n', "refused", "expected a string"),
    "null.jsonl": (b'{"text": null}\n', "refused", "expected a string"),
    "nofield.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "refused", "no field 'text'"),
    "twice.jsonl": (b'{"text": "a", "text": "b"}\n', "either", ""),
    "blank.jsonl": (b'\n\n{"text": "a"}\n\n', "right", ""),
    "quote.csv": (b'text,label\n"Great soup,no\nb,yes\n"c,no\n', "refused", "line"),
    "quote2.csv": (b'text,label\na"b"c,no\nd "e,x\n', "either", ""),
    "twice.csv": (b"text,text\na,b\n", "refused", "text"),
    "short.csv": (b"id,text\n1,a\n2\n", "refused", "line 3"),
    "wide.csv": (b"id,text\n1,a,b\n", "refused", "line 2"),
    "header.csv": (b"id,text\n", "right", ""),
    "nothing.csv": (b"", "refused", "empty"),
    "huge.csv": (b"text\n" + b"a" * 200_000 + b"\n", "either", ""),
    "nulls.csv": (b"text\na\0b\n", "either", ""),
    "lines.csv": (b'text,id\n"a\nb",1\n', "right", ""),
    "semicolon.csv": (b"text;id\na;1\n", "refused", "text"),
    "quote.tsv": (b'label\ttext\nyes\t"Great soup\nno\tb\nyes\t"c\nno\tlast\n', "right", ""),
    "short.tsv": (b"id\ttext\n1\n", "refused", "line 2"),
    "no.parquet": (b"PAR1 no", "refused", "parquet"),
    "no.txt.gz": (b"no gzip", "refused", "no.txt.gz"),
    "cut.txt.gz": (gzip.compress(b"a\n" * 9999)[:-9], "refused", "cut.txt.gz"),
    "fine.txt.gz": (gzip.compress(b"a\nb\n"), "right", ""),
    "deep.jsonl.gz": (gzip.compress(b'{"text": "a"}\n'), "right", ""),
    "x.pkl": (b"\x80\x04N.", "refused", ".pkl"),
    "x.docx": (b"PK", "refused", ".docx"),
    "noending": (b"a\n", "refused", "expected"),
}


def inputs(folder: Path, model: Path) -> Iterator[Case]:
    (folder / "in").mkdir()
    for name, (content, expect, says) in TEXTS.items():
        source, output = folder / "in" / name, folder / f"out-{name}.npy"
        source.write_bytes(content)
        act = partial(command, "embed", "-m", model, "-i", source, "-o", output)
        yield Case(f"embed -i {name}", act, expect, says, partial(rows_are_finite, output), (source,))
        act = partial(command, "predict", "-m", folder / "heads", "-i", source, "-o", output.with_suffix(".jsonl"))
        yield Case(f"predict -i {name}", act, "either" if expect == "right" else expect, says, kept=(source,))
    yield Case("embed -i quote.tsv gives 4 rows", partial(command, "embed", "-m", model, "-i",
        folder / "in" / "quote.tsv"),
               "right", right=lambda outcome: "shape (4, 5)" in outcome.stdout)  # fmt: skip
    for name, says in {"absent.txt": "no file", ".": "expected", "in": "expected", "/dev/null": "expected"}.items():
        yield Case(f"embed -i {name}", partial(command, "embed", "-m", model, "-i", name), says=says)
    os.mkfifo(folder / "pipe.txt")
    yield Case("embed -i a pipe that nobody writes", partial(command, "embed", "-m", model, "-i", folder / "pipe.txt"))
    for stdin, expect in ((b"", "either"), (b"a\n\xff", "refused"), (b"a\nb", "right"), (None, "refused")):
        yield Case(f"embed with {stdin!r} on stdin", partial(command, "embed", "-m", model, stdin=stdin), expect)


def rows_are_finite(path: Path, outcome: Outcome) -> bool:
    return bool(np.isfinite(np.load(path)).all())


def outputs(folder: Path, model: Path) -> Iterator[Case]:
    (folder / "rows.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    (folder / "link.jsonl").symlink_to("rows.jsonl")
    os.link(folder / "rows.jsonl", folder / "hard.jsonl")
    for name in ("earlier.npy", "earlier.jsonl", "earlier.csv"):
        (folder / name).write_bytes(b"earlier")
    (folder / "folder.npy").mkdir()
    embed = partial(command, "embed", "-m", model)
    rows = folder / "rows.jsonl"
    for name in ("rows.jsonl", "link.jsonl", "hard.jsonl", "./in/../rows.jsonl"):
        for extra in ((), ("--overwrite",), ("--resume",)):
            act = partial(embed, "-i", rows, "-o", folder / name, *extra)
            yield Case(f"embed -i rows.jsonl -o {name} {extra}", act, kept=(rows,))
    for name in ("earlier.npy", "earlier.jsonl", "earlier.csv"):
        act = partial(embed, "-i", rows, "-o", folder / name)
        yield Case(f"embed onto {name}", act, says="overwrite", kept=(folder / name,))
    refusals = {"out.pkl": ".npy", "out": "ends in", "nowhere/out.npy": "folder", "folder.npy": "folder", "": "",
                "/dev/full": "ends in", "/proc/x.npy": "", "x" * 300 + ".npy": "File name too long"}  # fmt: skip
    for name, says in refusals.items():
        yield Case(f"embed -o {name[:20]!r}", partial(embed, "-o", name, "a"), says=says)
    for name in ("o.npy", "o.safetensors", "o.jsonl", "o.csv"):
        path = folder / name
        yield Case(
            f"embed -o {name}", partial(embed, "-i", rows, "-o", path), "right", right=lambda _, p=path: p.is_file()
        )
        yield Case(
            f"embed -o {name} --resume, done", partial(embed, "-i", rows, "-o", path, "--resume"), "right", kept=(path,)
        )
        yield Case(f"embed -o {name} again", partial(embed, "-i", rows, "-o", path), says="overwrite", kept=(path,))
        act = partial(embed, "-i", rows, "-o", folder / f"new-{name}", "--resume")
        yield Case(f"embed -o new-{name} --resume, nothing there", act, "right")
        act = partial(embed, "-i", rows, "-o", path, "--resume", "--truncate-dim", "2")
        yield Case(f"embed -o {name} --resume, other settings", act, kept=(path,))
    for precision in ("int8", "uint8", "float16", "binary", "ubinary", "int4", "FLOAT32"):
        act = partial(embed, "-i", rows, "-o", folder / f"{precision}.npy", "--output-precision", precision)
        yield Case(f"--output-precision {precision}", act, "refused" if precision in ("int4", "FLOAT32") else "right")
    (folder / "equal.txt").write_text("a\n" * 8192 + "b c d\ne f g\n")
    act = partial(embed, "-i", folder / "equal.txt", "-o", folder / "equal.npy", "--output-precision", "int8")
    yield Case(
        "A4 int8 after equal lines", act, "right", right=lambda _: len(set(np.load(folder / "equal.npy")[-1])) > 1
    )
    act = partial(embed, "-i", rows, "-o", folder / "ids.jsonl")
    yield Case(
        "A3 ids are kept",
        act,
        "right",
        right=lambda _: [json.loads(line)["id"] for line in (folder / "ids.jsonl").read_text().splitlines()] == [1, 2],
    )
    for content in (b"", b"{", b"[]", b'{"rows": 9}', b"\xff", b"[" * 100_000):
        for name in ("p.npy", "p.jsonl"):
            for extra in ((), ("--resume",)):
                act = partial(
                    interrupted, folder / name, content, partial(embed, "-i", rows, "-o", folder / name, *extra)
                )
                yield Case(f"{name} with a state of {content[:9]!r} {extra}", act)


def interrupted(path: Path, state: bytes, act: Callable[[], Outcome]) -> Outcome:
    """What a command says where another left rows and this state; it is an error of its own if it loses the rows."""
    partial_path = path.with_name(f"{path.name}.partial")
    partial_path.write_bytes(b"rows of an earlier run")
    path.with_name(f"{path.name}.partial.json").write_bytes(state)
    outcome = act()
    assert partial_path.read_bytes() == b"rows of an earlier run", "the rows of an interrupted run are lost"
    return outcome


def options(folder: Path, model: Path) -> Iterator[Case]:
    embed = partial(command, "embed", "-m", model)
    refused = [
        ("--truncate-dim", "0"), ("--truncate-dim", "6"), ("--truncate-dim", "x"), ("--truncate-dim", "-1"),
        ("--max-length", "0"), ("--max-length", "2"), ("--max-length", "17"), ("--max-length", "1e3"),
        ("--max-length", "9" * 30), ("--batch-tokens", "0"), ("--batch-tokens", "-5"), ("--threads", "0"),
        ("--threads", "-3"), ("--threads", "two"), ("--overflow", "cut"), ("--overflow", "error", "a " * 99),
        ("--device", "tpu"), ("--device", ""), ("--device", "cuda:99"), ("--device", "meta"), ("--device", "cpu:7x"),
        ("--precision", "fp64"), ("--precision", ""), ("--precision", "INT8"), ("--field", "text"), ("--resume",),
        ("--overwrite",), ("--output-precision", "int8"), ("--no-such-option",), ("--prompt-name", "nonsense"),
        ("-i", "x.txt"), ("-o",), ("--resume", "--overwrite", "-o", "x.npy"),
    ]  # fmt: skip
    for given in refused:
        yield Case(f"embed {' '.join(given)[:40]}", partial(embed, *given, "a"))
    if not torch.cuda.is_available():
        for verb in ("embed", "predict"):
            act = partial(command, verb, "-m", folder / "heads", "--device", "cuda", "a")
            yield Case(f"{verb} --device cuda where there is none", act)
        load = partial(SentenceEncoder.from_pretrained, model, device="cuda")
        yield Case("device='cuda' from Python", partial(call, load), says="cuda")
    for given in (("--batch-tokens", "1"), ("--batch-tokens", "9" * 15), ("--truncate-dim", "1"), ("--max-length", "3"),
                  ("--prompt", ""), ("--prompt", "z" * 9999), ("--threads", "64"), ("--normalize",), ("--precision",
                  "int8"),
                  ("--overflow", "chunk"), ("--prompt", "\0\n")):  # fmt: skip
        yield Case(f"embed {' '.join(given)[:40]!r}", partial(embed, *given, "--", "a b", "c"), "right", right=finite)
    texts = ["", " ", "\0", "\n", "a" * 100_000, "é ü ß 漢字 日本", "😀", "\u202e", "\udcff\udcfe", "-1", "--",
        "[CLS] [SEP]",
             "[MASK]", "'",
             '"', "%s %d {x}", "$HOME `id`", "\x1b[31m", "a\tb", "\u0000" * 99, "İ", "ﬁ", "\ufffd"]  # fmt: skip
    for text in texts:
        yield Case(f"embed {text[:12]!a}", partial(embed, "--", text, "a"), "right", right=finite)
        yield Case(f"predict {text[:12]!a}", partial(command, "predict", "-m", folder / "heads", "--", text), "right")
    for verb in ("embedd", "--version", "--help", "models", "embed --help", "train --help", "check --help"):
        fine = verb.startswith("-") or verb.endswith("--help") or verb in ("models", "")
        yield Case(
            f"mtl {verb}", partial(command, *verb.split()), "either" if verb == "" else "right" if fine else "refused"
        )


RECIPE = """\
model = "{model}"
[training]
{training}
[[task]]
name = "topic"
labels = ["x", "y"]
train = "{train}"
{task}
"""


def train(folder: Path, data: bytes = b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n',
    suffix: str = ".jsonl",
          training: str = "epochs = 1", task: str = "", model: str = "tiny", extra: tuple[object,
          ...] = ()) -> Outcome:  # fmt: skip
    """Train on this data, with these lines in the recipe."""
    number = next(NUMBER)
    (folder / f"data-{number}{suffix}").write_bytes(data)
    recipe = RECIPE.format(model=folder / model, train=f"data-{number}{suffix}", training=training, task=task)
    (folder / f"recipe-{number}.toml").write_text(recipe)
    return command("train", folder / f"recipe-{number}.toml", "-o", folder / f"run-{number}", *extra)


def rows(*labels: Any) -> bytes:
    return "".join(json.dumps({"text": f"a {i}", "label": label}) + "\n" for i, label in enumerate(labels)).encode()


def training(folder: Path) -> Iterator[Case]:
    for line in ("epochs = 0", "epochs = 1e9", "batch_size = -1", "learning_rate = nan", "learning_rate = inf",
        "seed = -1",
                 "warmup = 2", "clip = -1", "best = 'x.y'", "max_length = 1", "max_length = 99", "epoch = 3",
                 "seed = 'x'",
                 "schedule = 'steps'", "precision = 'fp64'", "patience = true", "[[", "x",
                 "cache_mb = -1"):  # fmt: skip
        yield Case(f"[training] {line}", partial(train, folder, training=line))
    for line in ("dropout = 1", "dropout = nan", "weight = -1", "weight = inf", "freeze = 99", "freeze = 'all'",
        "freeze = {}",
                 "freeze = { 2 = 1 }", "pooling = 'x'", "pooling = []", "pooling = ['mean', 'mean']", "head = 'mlp'",
                 "kind = 'ranking'", "kind = 'regression'", "dev = 'absent.csv'", "dev = '.'", "test = 'hf://x'",
                 "test = 'hf://datasets/../x@y/z'", "text_field = 'body'", "label_field = ''", "name = 'b'",
                 "nmae = 'x'"):  # fmt: skip
        yield Case(f"[[task]] {line}", partial(train, folder, task=line))
    singles: list[Any] = ["z", 2, -1, None, True, 1.5, ["x"], {}, "", " x", "X", float("nan"), 10**30]
    for label in singles:
        yield Case(
            f"label {label!r}", partial(train, folder, rows("x", label)), says="line 2" if label == label else ""
        )
    multi = 'kind = "multi-label"'
    for label in ([2, 0], [1, 0, 0], ["z"], "x|z", [1, "x"], 1, 0, True, {}, [None], [[1]], [0.5, 1], [-1, 0]):
        yield Case(f"A1 multi-label {label!r}", partial(train, folder, rows(["x"], label), task=multi), says="line 2")
    for label in ([1, 0], [0, 1], [0, 0], ["x", "y"], [], "x|y"):
        yield Case(f"A1 multi-label {label!r}", partial(train, folder, rows(["x"], label, ["y"]), task=multi), "right")
    for label in ("high", None, "nan", [1], {}, True, "1e999"):
        act = partial(train, folder, rows(1, label), task='kind = "regression"')
        yield Case(f"regression {label!r}", act)
    files = {"": ".jsonl", "[": ".jsonl", "text,label\n": ".csv", "text\na\n": ".csv",
        'text,label\n"a,x\nb,y\n': ".csv",
             "text,text\na,b\n": ".csv", "text\tlabel\na\n": ".tsv", "PAR1": ".parquet", "a\n": ".txt",
             "x": ".pkl"}  # fmt: skip
    for content, suffix in files.items():
        yield Case(f"data {content[:12]!r} in {suffix}", partial(train, folder, content.encode(), suffix))
    yield Case("data that is not UTF-8", partial(train, folder, b'{"text": "\xff", "label": "x"}\n'), says="not UTF-8")
    stray = b'label\ttext\nx\t"Great soup\ny\tb\nx\t"c\ny\tlast\n'
    yield Case("A6 a stray quote in .tsv", partial(train, folder, stray, ".tsv"), "right")
    yield Case("train a model that is none", partial(train, folder, model="nothing"))
    yield Case(
        "train --resume of nothing",
        partial(command, "train", folder / "recipe-0.toml", "-o", folder / "no", "--resume"),
    )
    yield Case("train without a recipe", partial(command, "train", folder / "nothing.toml"))
    run = folder / "run-again"
    (folder / "again.jsonl").write_bytes(rows("x", "y", "x"))
    (folder / "again.toml").write_text(
        RECIPE.format(model=folder / "tiny", train="again.jsonl", training="epochs = 1", task="")
    )
    again = partial(command, "train", folder / "again.toml", "-o", run)
    yield Case("train", again, "right", right=lambda _: (run / "model" / "config.json").is_file())
    kept = (run / "model" / "model.safetensors", run / "metrics.jsonl")
    yield Case("train into a finished run", again, kept=kept)
    yield Case("train --resume of a finished run", partial(again, "--resume"), "either", kept=kept)
    act = partial(command, "evaluate", "-m", run, "-r", folder / "again.toml", "--split", "train")
    yield Case("evaluate a run", act, "right")
    yield Case(
        "evaluate a split that is not there", partial(command, "evaluate", "-m", run, "-r", folder / "again.toml")
    )
    yield Case(
        "evaluate a model without heads",
        partial(command, "evaluate", "-m", folder / "tiny", "-r", folder / "again.toml"),
    )
    yield Case("evaluate without a recipe", partial(command, "evaluate", "-m", run, "-r", "nothing"))
    yield Case("embed with a run", partial(command, "embed", "-m", run, "a"), "right", right=finite)
    yield Case("predict with a run", partial(command, "predict", "-m", run, "a"), "right")


def python(folder: Path, model: Path, heads: Path) -> Iterator[Case]:
    encoder, multi = SentenceEncoder.from_pretrained(model), MultiTaskModel.from_pretrained(heads)
    bad: list[Any] = [None, 7, b"a", ["a", None], [1], [["a"]], ["a", b"b"], {"a": 1}.values(), [float("nan")],
        ["\ud800"],
                      object(), np.array([1, 2]), np.zeros((2, 2)), [np.nan], True, ["a", ("b",)]]  # fmt: skip
    for i, texts in enumerate(bad):
        yield Case(f"encode bad {i}", partial(call, partial(encoder.encode, texts)))
        yield Case(f"predict bad {i}", partial(call, partial(multi.predict, texts)))
    empty = partial(call, partial(encoder.encode, []))
    yield Case("encode []", empty, "right", right=lambda outcome: outcome.value.shape == (0, 5))
    for name, good in {"tuple": ("a", "b"), "array": np.array(["a", "b"]), "set": {"a", "b"}}.items():
        act = partial(call, partial(encoder.encode, good))
        yield Case(f"encode a {name}", act, "either", right=lambda outcome: outcome.value.shape == (2, 5))
    yield Case("A7 encode_stream of a string", partial(call, lambda: list(encoder.encode_stream("hello"))), "either",
               right=lambda outcome: sum(map(len, outcome.value)) == 1)  # fmt: skip
    wrong: dict[str, list[Any]] = {
        "threads": [0, -3, 1.5, "2"], "max_length": [0, 2, 17, "8", 3.5], "truncate_dim": [0, 6, -1, "2"],
        "batch_tokens": [0, -1, "9"], "overflow": ["cut", None, 7], "prompt": [7, b"a", ["a"]], "prompt_name": ["no",
        7],
        "normalise": [True], "convert_to_numpy": [7],
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            yield Case(f"encode({name}={value!r})", partial(call, partial(encoder.encode, ["a"], **{name: value})))
    for name, value in {"batch_size": 2, "show_progress_bar": False, "convert_to_tensor": True,
        "normalize_embeddings": True,
                        "prompt_name": "q", "device": "cpu"}.items():  # fmt: skip
        yield Case(
            f"C18 encode({name}={value!r})", partial(call, partial(encoder.encode, ["a"], **{name: value})), "either"
        )
    yield Case("C18 SentenceEncoder('name')", partial(call, partial(SentenceEncoder, "all-MiniLM-L6-v2")))  # type: ignore[arg-type]
    for value in (0, -3):
        yield Case(
            f"predict(threads={value})", partial(call, partial(multi.predict, ["a"], threads=value)), says="threads"
        )
    for name in (None, 7, "", Path("nothing"), "nonsense"):
        yield Case(f"from_pretrained({name!r})", partial(call, partial(SentenceEncoder.from_pretrained, name)))
    for value in ("fp64", None, 7):
        load = partial(SentenceEncoder.from_pretrained, model, precision=value)
        yield Case(f"precision={value!r}", partial(call, load), says="precision")
    yield Case("save onto the model", partial(call, partial(encoder.save, model)), kept=(model / "config.json",))
    yield Case(
        "save onto a file", partial(call, partial(encoder.save, folder / "vocab.txt")), kept=(folder / "vocab.txt",)
    )
    yield Case("save to /proc", partial(call, partial(encoder.save, "/proc/x")))
    yield Case("save under a long name", partial(call, partial(encoder.save, folder / ("x" * 300))))

    def training_mode() -> bool:
        fresh = MultiTaskModel.from_pretrained(heads).train()
        first, second = fresh.predict("a b c").embeddings, fresh.predict("a b c").embeddings
        return bool((first == second).all() and fresh.training)

    yield Case(
        "A5 predict in training mode", partial(call, training_mode), "right", right=lambda outcome: outcome.value
    )
    nan = SentenceEncoder.from_pretrained(model)
    with torch.no_grad():
        nan.encoder.embeddings.LayerNorm.weight.fill_(torch.nan)
    yield Case("A7 vectors that are not finite", partial(call, partial(nan.encode, ["a", "b"])))


def process(script: str, *arguments: object, **options: Any) -> Outcome:
    """A shell's script in a process of its own; $1 and so on are the arguments."""
    line = ["bash", "-c", script, "bash", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=50, env=ENVIRONMENT, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


FORK = """
import os, sys
from mtl import SentenceEncoder
from mtl.errors import MtlError
encoder = SentenceEncoder.from_pretrained(sys.argv[1])
encoder.encode(["a"] * 9 + ["b c"] * 9, threads=2)
child = os.fork()
if not child:
    try:
        encoder.encode(["a"] * 9 + ["b c"] * 9, threads=2)
    except MtlError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def processes(folder: Path, model: Path) -> Iterator[Case]:
    embed = '"$PY" -m mtl embed -m "$1" '
    yield Case("B16 stdin closed", partial(process, f"{embed} <&-", model))
    yield Case("B16 stdin closed, texts given", partial(process, f"{embed} a <&-", model), "right")
    yield Case("stdout to a full device", partial(process, f"{embed} a > /dev/full", model))
    yield Case("a reader that stops", partial(process, f"yes a | head -n 9000 | {embed} | head -n 1", model), "right")
    yield Case(
        "B10 a full disk", partial(process, f"ulimit -f 1; yes a | head -n 9000 | {embed} -o '{folder}/big.npy'", model)
    )
    yield Case("B12 a forked child", partial(process, '"$PY" -c "$2" "$1"', model, FORK), "either")
    yield Case("C20 python -m mtl", partial(process, '"$PY" -m mtl --version'), "right")


def all_cases(folder: Path) -> list[Case]:
    model, heads = workspace(folder)
    return [
        *names_of_models(folder, model), *damaged_models(model, heads), *inputs(folder, model), *outputs(folder, model),
        *options(folder, model), *training(folder), *python(folder, model, heads), *processes(folder, model),
    ]  # fmt: skip
