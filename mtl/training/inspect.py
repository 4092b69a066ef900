"""What is in a recipe's data, before anything is trained: labels, lengths, duplicates, leaks, and what is odd in them.

Rows are read one after another; of each there stay some bytes in memory, and its vector on the disk while near ones are
sought. A row of several texts is like another as the mean cosine of their texts says.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from mtl.checkpoints import load
from mtl.checkpoints.fetch import fetch
from mtl.disk import write_whole, writing
from mtl.display import counted
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import Tokenized
from mtl.encode.windows import cuts_in_words, in_blocks
from mtl.errors import RecipeError, shown
from mtl.rows.read import folded
from mtl.search import BLOCK, as_tensor, blocks_of, nearest
from mtl.tasks.spec import TaskSpec
from mtl.training.data import SPLITS, Read, Rows, each_row, held_out, places_in_words
from mtl.training.recipe import Recipe, as_recipe
from mtl.training.report import drawing
from mtl.training.start import trunk_of

WINDOW = 2048  # rows that are looked at together
NEAR, MOST = 0.95, 20_000  # a cosine from which on rows are near; rows of a split up to which such are sought
FILE = Path("a temporary file")  # in which the vectors are, as errors call it
EXAMPLES = 3  # pairs of places that are named of each finding
UNEVEN = 10  # times that the largest class may be the smallest before it is said


@dataclasses.dataclass
class Found:
    """What is in one split of a task.

    ``rows`` are all but those ``unlabelled`` or ``wrong``; ``lengths`` are tokens of texts, uncut, by how many texts
    have so many. ``seen`` are rows by a digest of their texts: how many there are, where the first is, and how its
    label reads.
    """

    rows: int = 0
    unlabelled: int = 0
    places: int = 0
    wrong: int = 0
    first_wrong: str = ""
    empty: int = 0
    cut: int = 0
    cut_tokens: int = 0
    conflicts: int = 0
    labels: Counter[str] = dataclasses.field(default_factory=Counter)
    spelled: Counter[str] = dataclasses.field(default_factory=Counter)
    numbers: list[float] = dataclasses.field(default_factory=lambda: [0.0, np.inf, -np.inf])  # sum, least, most
    lengths: Counter[int] = dataclasses.field(default_factory=Counter)
    seen: dict[bytes, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        """Rows whose texts stand in an earlier one."""
        return self.rows - len(self.seen)

    def quantile(self, share: float) -> int:
        """The tokens that so many of the texts do not exceed."""
        total, passed = sum(self.lengths.values()), 0
        for length in sorted(self.lengths):
            passed += self.lengths[length]
            if passed >= share * total:
                return length
        return 0

    def as_dict(self) -> dict[str, Any]:
        tokens = {name: self.quantile(share) for name, share in
                  (("least", 0.0), ("median", 0.5), ("p95", 0.95), ("most", 1.0))}  # fmt: skip
        total, least, most = self.numbers
        numbers = {"mean": total / self.rows, "least": least, "most": most} if least <= most else None
        return {
            "rows": self.rows, "unlabelled": self.unlabelled, "labels_by_place": self.places, "wrong": self.wrong,
            "first_wrong": self.first_wrong, "empty": self.empty, "duplicates": self.duplicates,
            "conflicting": self.conflicts, "tokens": tokens, "cut_texts": self.cut, "cut_tokens": self.cut_tokens,
            "labels": dict(self.labels), "numbers": numbers,
        }  # fmt: skip


@dataclasses.dataclass
class Report:
    """What is in a recipe's data: by task and split, and in ``notes`` what to look at, a line each."""

    model: str
    limit: int
    splits: dict[str, dict[str, Found]]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        tasks = {name: {split: found.as_dict() for split, found in splits.items()}
                 for name, splits in self.splits.items()}  # fmt: skip
        return {"model": self.model, "max_length": self.limit, "tasks": tasks, "notes": self.notes}


def inspect(
    recipe: Recipe | str | Path,
    near: float = NEAR,
    most: int = MOST,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> Report:
    """Look at all data of a recipe. Nothing is trained or written.

    Args:
        recipe: A ``Recipe``, a .toml file, or the name of a recipe that comes with the package.
        near: The cosine of the model's vectors from which on rows are near; 1: only equal ones are sought.
        most: Rows of a split up to which near ones are sought: all are compared with all.
        device, threads: Where, and with how many CPU threads, vectors are computed.

    Raises:
        RecipeError: near is no cosine.
        MtlError: a file or the model cannot be read. Rows that are wrong are counted.
    """
    if not 0 < near <= 1:
        raise RecipeError(f"near is {near:g}; expected a cosine above 0, at most 1")
    read = as_recipe(recipe)[0]
    encoder = SentenceEncoder.from_checkpoint(load.load(fetch(trunk_of(read)))).to(device)
    limit = encoder.length_limit(read.training.max_length)
    report = Report(read.model, limit, {}, [])
    for task in read.tasks:
        looked = Look(task, read, encoder, limit)
        report.splits[task.name] = looked.splits
        report.notes += [f"{task.name}: {note}" for note in [*looked.notes(), *looked.similar(near, most, threads)]]
    return report


def known(task: TaskSpec, folder: Path) -> TaskSpec:
    """The task with the labels of its training data where it names none, of the rows that are right and if they do."""
    if not (task.handler.finds_labels and task.train):
        return task
    targets = [row.target for row in each_row(task, "train", folder) if not (row.blank or row.wrong)]
    try:
        return task.handler.complete(task.handler.stacked(targets))
    except RecipeError:
        return task


class Look:
    """One task's data as they are looked at."""

    def __init__(self, task: TaskSpec, recipe: Recipe, encoder: SentenceEncoder, limit: int) -> None:
        self.task, self.folder, self.seed = known(task, recipe.folder), recipe.folder, recipe.training.seed
        self.encoder, self.limit = encoder, limit
        self.held = self.shares()
        self.splits = {split: self.split(split) for split in SPLITS if getattr(task, split) is not None}

    def shares(self) -> dict[str, list[int]]:
        """The rows of train that shares of it take, where there are such."""
        if not self.task.shares:
            return {}
        good = [row for row in each_row(self.task, "train", self.folder) if not (row.blank or row.wrong)]
        return held_out(self.task, Rows([row.texts for row in good], [row.target for row in good]), self.seed)

    def rows(self, split: str) -> Iterator[Read]:
        """The rows of a split, and with train's those that cannot be used, of which no share takes any."""
        if not self.task.shares or (split not in self.held and split != "train"):
            yield from each_row(self.task, split, self.folder)
            return
        others = {i for name, part in self.held.items() if name != split for i in part}
        own, number = {*self.held.get(split, ())}, -1
        for row in each_row(self.task, "train", self.folder):
            usable = not (row.blank or row.wrong)
            number += usable
            if (usable and number in own) if split in self.held else not (usable and number in others):
                yield row

    def split(self, split: str) -> Found:
        """All that is in one split."""
        found = Found(labels=Counter(dict.fromkeys(self.task.labels, 0)))  # in the order that they are declared in
        for block in in_blocks(self.rows(split), WINDOW):
            tokens = self.tokens([row.texts for row in block.rows])
            found.lengths.update(len(row) + cut for row, cut in zip(tokens.rows, tokens.cuts, strict=True))
            if self.task.handler.level == "text":  # a text to be tagged is gone through in windows, and not cut
                found.cut += tokens.cut_texts
                found.cut_tokens += tokens.cut_tokens
            for row in block.rows:
                self.note(found, row)
        return found

    def tokens(self, texts: Sequence[Sequence[str]]) -> Tokenized:
        """The tokens of rows' texts as training takes them: each by itself, or the first with each other in one row."""
        if self.task.handler.joint is True:
            pairs = [(row[0], other) for row in texts for other in row[1:]]
            return self.encoder.tokenizer.pairs(pairs, "truncate", self.limit)
        each = [text for row in texts for text in row]
        return self.encoder.tokenizer(each, "truncate", self.limit, prompt=self.encoder.default_prompt)

    def note(self, found: Found, row: Read) -> None:
        """Count one row in."""
        found.spelled.update(self.task.handler.spelled(row.fields))
        if row.blank:
            found.unlabelled += 1
            return
        if row.wrong:
            found.first_wrong = found.first_wrong or f"{row.where[0]}, line {row.where[1]}: {row.wrong}"
            found.wrong += 1
            return
        found.rows += 1
        found.places += row.by_place
        found.empty += not all(text.strip() for text in row.texts)
        found.labels.update(self.task.handler.labels_in(row.target))
        if isinstance(row.target, list) and len(row.target) == 1 and not self.task.labels:
            total, least, most = found.numbers
            number = float(row.target[0])
            found.numbers = [total + number, min(least, number), max(most, number)]
        label = repr(row.target)
        known = found.seen.setdefault(digest(row.texts), [0, row.where, label])
        known[0] += 1
        if known[2] != label:
            found.conflicts += known[2] is not None  # once for each text
            known[2] = None if known[2] is not None else known[2]

    def notes(self) -> Iterator[str]:
        """What is odd, in words; ``similar`` has what is twice."""
        noun = "pair" if self.task.handler.joint is True else "text"
        for split, found in self.splits.items():
            if not found.rows:
                yield f"{split} has no row with a label that is right"
            if found.wrong:
                yield f"{split}: {counted(found.wrong, 'row')} cannot be read: {found.first_wrong}"
            if found.unlabelled:
                yield f"{split}: {counted(found.unlabelled, 'row')} without a label, left out in training"
            if found.places:
                given = f"{counted(found.places, 'label')} given as numbers"
                yield f"{split}: {given}, taken as places: {places_in_words(self.task.labels)}"
            if found.empty:
                yield f"{split}: {counted(found.empty, 'row')} with an empty text"
            if found.cut:
                yield f"{split}: {cuts_in_words(found.cut, found.cut_tokens, self.limit, noun)}"
            if found.conflicts:
                yield f"{split}: {counted(found.conflicts, 'text')} with different labels"
        spelled = sum((found.spelled for found in self.splits.values()), Counter())
        for group in alike([*self.task.labels, *spelled]):
            ways = ", ".join(f"{shown(name)} ({spelled[name]})" for name in group)
            yield f"a label is spelled in several ways: {ways}"
        yield from self.balance()

    def balance(self) -> Iterator[str]:
        """What is odd in how often labels are there."""
        train = self.splits.get("train")
        counts = train.labels if train else Counter[str]()
        declared = self.task.labels or [*counts]
        if train and any(counts.values()):
            if missing := [label for label in declared if not counts[label]]:
                yield f"train has no row of {', '.join(missing)}"
            (most, highest), (least, lowest) = counts.most_common(1)[0], (+counts).most_common()[-1]
            if highest > UNEVEN * lowest:
                yield f"train is uneven: {most} has {highest} rows, {least} {lowest}; see class_weights"
        for split in ("dev", "test"):
            held = self.splits[split].labels if split in self.splits else Counter[str]()
            missing = [label for label in declared if not held[label]]
            if any(held.values()) and missing:
                yield f"{split} has no row of {', '.join(missing)}"

    # What is there twice

    def similar(self, near: float, most: int, threads: int | None) -> Iterator[str]:
        """Rows that are equal, or nearly, within splits and between them, in words."""
        for split, found in self.splits.items():
            if found.duplicates:
                twice = (where for count, where, _ in found.seen.values() if count > 1)
                yield f"{split}: {counted(found.duplicates, 'row')} with the texts of an earlier one: {places(twice)}"
        for one, other in combinations(self.splits, 2):
            both = self.splits[one].seen.keys() & self.splits[other].seen.keys()
            if both:
                count = sum(self.splits[other].seen[key][0] for key in both)
                pairs = ((self.splits[other].seen[key][1], self.splits[one].seen[key][1]) for key in both)
                yield f"{other}: {counted(count, 'row')} with the texts of a row of {one}: {places(sorted(pairs))}"
        if near < 1:
            yield from self.near(near, most, threads)

    def near(self, least: float, most: int, threads: int | None) -> Iterator[str]:
        """Rows that are not equal, but near, in words."""
        chosen = [split for split, found in self.splits.items() if 0 < len(found.seen) <= most]
        for split, found in self.splits.items():
            if (count := len(found.seen)) and split not in chosen:
                yield f"{split}: near rows are not sought: there are {count} different ones, more than {most}"
        with ExitStack() as stack:
            with writing(FILE, RecipeError):
                file = stack.enter_context(TemporaryFile(buffering=0))
            vectors = {split: self.vectors(split, file, threads) for split in chosen}
            for one, other in [*((split, split) for split in chosen), *combinations(chosen, 2)]:
                yield from self.near_pairs(one, other, vectors, least)

    def vectors(self, split: str, file: Any, threads: int | None) -> Any:
        """A vector of length 1 for each different row of a split, on the disk: (rows, texts x dim)."""
        left, start, width = {*self.splits[split].seen}, file.seek(0, 2), 0
        different = (row for row in self.rows(split) if not (row.blank or row.wrong) and taken(left, digest(row.texts)))
        count = len(left)
        for block in in_blocks(different, WINDOW):
            texts = [text for row in block.rows for text in row.texts]
            found = self.encoder.encode(texts, overflow="truncate", max_length=self.limit, normalize=True,
                                        threads=threads, progress=False)  # fmt: skip
            of_rows = found.reshape(len(block.rows), -1) / (len(texts) / len(block.rows)) ** 0.5
            width = of_rows.shape[1]
            with writing(FILE, RecipeError):
                write_whole(file.fileno(), memoryview(of_rows.astype(np.float32).tobytes()))
        return np.memmap(file, np.float32, "r", start, (count, width))

    def near_pairs(self, one: str, other: str, vectors: Mapping[str, Any], least: float) -> Iterator[str]:
        """Which rows of ``other`` are near to one of ``one``, in words; equal ones are left out."""
        queries, corpus, same = vectors[other], vectors[one], one == other
        keys, theirs = [*self.splits[other].seen], [*self.splits[one].seen]
        count, pairs = 0, []
        for start in range(0, len(queries), BLOCK):
            scores, found = nearest(as_tensor(queries[start : start + BLOCK]), blocks_of(corpus), 2)
            for i, (values, at) in enumerate(zip(scores.tolist(), found.tolist(), strict=True), start):
                near = [(value, place) for value, place in zip(values, at, strict=True)
                        if value >= least and theirs[place] != keys[i]]  # fmt: skip
                if near and (same or keys[i] not in self.splits[one].seen):
                    count += 1
                    value, place = near[0]
                    where = self.splits[other].seen[keys[i]][1], self.splits[one].seen[theirs[place]][1]
                    pairs.append((value, *where))
            if same:  # each pair once
                pairs = [(value, *where) for where, value in {tuple(sorted(w)): value for value, *w in pairs}.items()]
            pairs = sorted(pairs, key=lambda pair: -pair[0])[:EXAMPLES]
        if count:
            to = f"another of {one}" if same else f"one of {one}"
            best = "; ".join(f"{line(a)} and {line(b)} ({value:.3f})" for value, a, b in pairs)
            yield f"{other}: {counted(count, 'row')} near to {to}, by a cosine of {least:g} or more: {best}"


def digest(texts: Sequence[str]) -> bytes:
    """What stands for a row's texts."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        content = text.encode(errors="surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.digest()


def taken(left: set[bytes], key: bytes) -> bool:
    """Whether a key is among those left, which it then is no more."""
    if key not in left:
        return False
    left.remove(key)
    return True


def line(where: tuple[Path, int]) -> str:
    return f"{where[0].name}, line {where[1]}"


def places(found: Any) -> str:
    """The first few of places, or of pairs of them."""
    listed = [*found]
    said = [line(each) if isinstance(each[1], int) else f"{line(each[0])} and {line(each[1])}" for each in listed]
    return "; ".join(said[:EXAMPLES]) + ("; ..." if said[EXAMPLES:] else "")


def alike(names: Sequence[str]) -> list[list[str]]:
    """Different names that are one but for case, blanks and forms of Unicode, in groups."""
    groups: dict[str, dict[str, None]] = {}
    for name in names:
        groups.setdefault(folded(name), {})[name] = None
    return [[*group] for group in groups.values() if len(group) > 1]


def plot(report: Report, path: Path) -> None:
    """Write a picture with two panels for each task: how long its texts are, and how often its labels are there."""
    with drawing(path, 2 * len(report.splits), (11 * len(report.splits), 4)) as panels:
        for i, (name, splits) in enumerate(report.splits.items()):
            draw_lengths(panels[2 * i], name, splits, report.limit)
            draw_labels(panels[2 * i + 1], name, splits)


def draw_lengths(axes: Any, name: str, splits: Mapping[str, Found], limit: int) -> None:
    """A step histogram of tokens for each split, as shares of its texts."""
    for split, found in splits.items():
        if found.lengths:
            axes.hist([*found.lengths], 40, weights=[n / sum(found.lengths.values()) for n in found.lengths.values()],
                      histtype="step", label=split)  # fmt: skip
    if any(length > limit for found in splits.values() for length in found.lengths):
        axes.axvline(limit, color="black", linestyle=":", label=f"limit, {limit}")
    axes.set(xlabel="tokens", ylabel="share of texts", title=f"{name}: lengths")
    axes.legend()


def draw_labels(axes: Any, name: str, splits: Mapping[str, Found]) -> None:
    """A group of bars for each label, a bar for each split."""
    labels = list(dict.fromkeys(label for found in splits.values() for label in found.labels))
    for i, (split, found) in enumerate(splits.items()):
        places = [at + 0.8 * i / len(splits) for at in range(len(labels))]
        axes.barh(places, [found.labels[label] for label in labels], 0.8 / len(splits), label=split)
    axes.set_yticks([at + 0.4 for at in range(len(labels))], [shown(label, 30).strip("'") for label in labels])
    axes.invert_yaxis()
    axes.set(xlabel="times", title=f"{name}: labels" if labels else f"{name}: no labels")
    axes.legend()
