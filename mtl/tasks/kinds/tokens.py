"""tokens: labelled spans of a text (named entities), or a label for each word (parts of speech)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.display import counted
from mtl.encode.batching import in_order
from mtl.encode.tokenizer import filled
from mtl.errors import RecipeError, is_unicode, shown
from mtl.model.heads import Branch
from mtl.model.losses import NO_LABEL, soft_cross_entropy, token_cross_entropy
from mtl.model.pooling import EachToken
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.base import check_head, new_head
from mtl.tasks.kinds.classes import ClassKind, ClassOptions, evenly
from mtl.tasks.spans import (
    OUTSIDE,
    Span,
    Units,
    Word,
    bio,
    checked_spans,
    in_units,
    overall,
    parted,
    runs,
    tagged,
    tallied,
    word_at,
)
from mtl.tasks.tally import Tally, by_label, calibration_error
from mtl.tasks.teacher import teacher_tags

if TYPE_CHECKING:
    from mtl.checkpoints.load import Classifier
    from mtl.tasks.spec import TaskSpec


@dataclasses.dataclass(frozen=True)
class TokenOptions(ClassOptions):
    """The outputs by name, and the options of classes.

    tags: A name for each output, where they are not O, and B- and I- of each label: as a published tagger has them, or
        the labels of single words, without "O", as NOUN and VERB.
    head: "linear", or one with a hidden layer, as of other kinds: ModernBERT's own taggers have "modernbert".
    dropout: The share of the features that the head drops in training.
    teacher: A tagger of the same tags, whose probabilities of each word's are learned in place of those that train has;
        its tokenizer may be another. A row's spans may then be [].
    """

    tags: tuple[str, ...] = ()
    head: str = "linear"
    dropout: float = 0.1
    teacher: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.tags)) < len(self.tags) or "" in self.tags:
            raise unexpected("tags", self.tags, "a name for each output, each once", "are")
        check_head(self.head, self.dropout)
        if self.teacher and (self.class_weights is not None or self.label_smoothing):
            name = "label_smoothing" if self.class_weights is None else "class_weights"
            raise RecipeError(f"{name} is given beside a teacher, who says how likely each tag is; expected none", name)


@dataclasses.dataclass(frozen=True)
class Marked:
    """What a row says of its text: spans, or a tag for each of its words, which are these characters."""

    spans: list[Span]
    words: list[tuple[int, int]] | None = None
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TaggedExamples(Examples):
    """An example for each window of a text. ``texts`` are the whole ones, and ``spans`` what is to be found in them."""

    texts: Sequence[Units] = ()
    spans: Sequence[Sequence[Span]] = ()

    @property
    def measured_rows(self) -> int:
        """Whole texts, not windows."""
        return len(self.texts)


class Tokens(ClassKind):
    """Labelled spans, or words: {"tokens": [...], "tags": [...]} in IOB1, IOB2 or BIOES, {"text": ..., "spans":
    [[start, end, label], ...]} with characters from start up to end, not included, or a .conll file.

    Labels that are not given are those of the training data. The first piece of a word carries its tag. Logits are
    (tokens, tags), and targets (rows, length) int16, ``NO_LABEL`` where a token has none; with a ``teacher`` those of
    train are its probabilities, (rows, length, tags), all 0 where a token has none. A text over the limit is tagged in
    windows that overlap.
    """

    name = "tokens"
    Options: ClassVar[type] = TokenOptions
    options: TokenOptions
    level: ClassVar[Literal["text", "token"]] = "token"
    least_labels: ClassVar[int | None] = 0
    own_metrics: ClassVar[Mapping[str, int]] = {"f1": 1, "precision": 1, "recall": 1}

    def __init__(self, task: TaskSpec) -> None:
        self.tags: tuple[str, ...] = task.tags or (bio(task.labels) if task.labels else ())
        self.alone = OUTSIDE not in self.tags  # a label for each word, and no spans
        self.types = tuple(dict.fromkeys(label for _, label in map(parted, self.tags) if label))
        self.index = {tag: i for i, tag in enumerate(self.tags)}
        super().__init__(task)
        if self.options.tags and self.labels and {*self.types} != {*self.labels}:
            given = f"tags are of {', '.join(self.types)}, and labels are {', '.join(self.labels)}"
            raise RecipeError(f"{given}; expected one of the two", "tags")

    @property
    def metrics(self) -> Mapping[str, int]:
        """Those of its kind, for all labels together and for each."""
        of_labels = {f"{label}.{name}": sign for label in self.types for name, sign in self.own_metrics.items()}
        return {**self.own_metrics, **of_labels}

    # Data

    def read(self, fields: Mapping[str, Any]) -> tuple[list[str], Marked]:
        (text_field,), label_field = self.task.text_field, self.task.label_field
        named = (text_field, label_field)
        pairs = [("tokens", "tags"), ("text", "spans")] if named == ("text", "label") else [named]
        held = [pair for pair in pairs if fields.keys() >= {*pair}]
        held = held or [named] * (fields.keys() >= {*named})  # a row may have a label of its text beside its spans
        if len(held) != 1:
            expected = " or ".join(" and ".join(map(repr, pair)) for pair in pairs)
            hint = "name them with text_field and label_field"
            raise ValueError(f"fields are {', '.join(fields)}; expected {expected}; {hint}")
        words, labels = (fields[name] for name in held[0])
        if isinstance(words, str):
            if not words.strip():
                raise ValueError(f"{held[0][0]} is empty; expected a text")
            return [whole(words, held[0][0])], Marked(self.check_spans(labels, words, held[0][1]))
        if not isinstance(words, list):
            raise ValueError(f"{held[0][0]} is {shown(words)}; expected a text, or a list of words")
        return self.read_words(words, labels, *held[0])

    def check_spans(self, value: Any, text: str, field: str) -> list[Span]:
        try:
            spans = checked_spans(value, text)
            unknown = [label for *_, label in spans if self.tags and label not in self.types]
            if unknown:
                raise ValueError(f"has the label {unknown[0]!r}; expected one of {', '.join(self.types)}")
        except ValueError as error:
            raise ValueError(f"{field} {error}") from None
        return spans

    def read_words(self, words: Any, tags: Any, text_field: str, label_field: str) -> tuple[list[str], Marked]:
        """A row of words and tags; the text is the words with a blank between them."""
        for name, value, kinds in ((text_field, words, str), (label_field, tags, (str, int))):
            if not isinstance(value, list) or not all(type(x) is not bool and isinstance(x, kinds) for x in value):
                raise ValueError(f"{name} is {shown(value)}; expected a list of strings")
        if not words:
            raise ValueError(f"{text_field} is empty; expected at least one word")
        if len(words) != len(tags):
            raise ValueError(f"{len(words)} {text_field} and {len(tags)} {label_field}; expected a tag for each")
        if blank := [i for i, word in enumerate(words) if not word.strip()]:
            raise ValueError(f"{text_field}[{blank[0]}] is {words[blank[0]]!r}; expected a word")
        words = [whole(word, text_field).strip() for word in words]
        found = tuple(self.tag(tag, label_field) for tag in tags)
        starts = [0]
        for word in words:
            starts.append(starts[-1] + len(word) + 1)
        bounds = [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]
        spans = [(bounds[i][0], bounds[j - 1][1], label) for i, j, label in runs(found, self.alone)]
        return [" ".join(words)], Marked(spans, bounds, found)

    def tag(self, tag: str | int, field: str) -> str:
        """A tag as it stands in the data, or a number among ``tags``, if it is one of the task's."""
        if isinstance(tag, int):
            if not 0 <= tag < len(self.options.tags):
                raise ValueError(f"{field} has the number {tag}; expected a name, or a place from 0 among tags = [...]")
            return self.tags[tag]
        prefix, label = parted(tag)
        if tag != OUTSIDE and not label.strip():
            raise ValueError(f"{field} has {tag!r}; expected O, or a tag with the name of a label")
        if self.tags and not self.alone and tag not in self.index and (not prefix or label not in self.types):
            words = " (for labels of single words say tags = [...], not labels)" if tag in self.types else ""
            raise ValueError(f"{field} has {tag!r}; expected O, or B- or I- and one of {', '.join(self.types)}{words}")
        if self.tags and self.alone and tag not in self.index:
            raise ValueError(f"{field} has {tag!r}; expected one of {', '.join(self.tags)}")
        return tag

    @property
    def finds_labels(self) -> bool:
        return not self.tags

    def complete(self, targets: Sequence[Marked]) -> TaskSpec:
        """The task with the labels of its training data; a RecipeError if they have none, or B- or I- before some tags
        alone."""
        labels = {label for marked in targets for *_, label in marked.spans}
        tags = {tag for marked in targets for tag in marked.tags}
        plain, prefixed = ({tag for tag in tags if bool(parted(tag)[0]) is known} for known in (False, True))
        where = f"task {self.task.name!r}: its training data"
        if plain and prefixed:
            given = f"{where} have tags as {min(plain)!r} and as {min(prefixed)!r}"
            other = f"tags = [{', '.join(map(repr, sorted(tags)))}] takes them as they are"
            raise RecipeError(f"{given}; expected all of them O, B-... and I-..., or none of them; {other}", "tags")
        if "o" in plain and any(parted(tag.upper())[0] for tag in plain - {"o"}):
            raise RecipeError(f"{where} have tags as {min(plain)!r} and 'o'; expected capital letters before the label")
        if not labels:
            raise RecipeError(f"{where} have no labelled span; expected some, or labels = [...]")
        if plain:
            return dataclasses.replace(self.task, tags=tuple(sorted(plain)))
        return dataclasses.replace(self.task, labels=tuple(sorted(labels)))

    def declared(self, known: TaskSpec | None) -> TaskSpec:
        task = dataclasses.replace(self.task, teacher="")  # what is measured is what the data say
        if known is None or known.kind != self.name or (self.tags and {*self.tags} != {*known.handler.output_names}):
            return task
        return dataclasses.replace(task, labels=known.labels, tags=known.tags)

    @property
    def becomes(self) -> TaskSpec:
        return dataclasses.replace(super().becomes, teacher="")

    def continued(self, before: TaskSpec) -> TaskSpec | None:
        same = before.kind == self.name and before.handler.output_names == self.tags and before.head == self.task.head
        return self.task if same else None

    def begins_with(self, theirs: Classifier) -> bool:
        return theirs.kind == "tokens" and self.tags == theirs.labels

    def labels_in(self, target: Marked) -> list[str]:
        return [label for *_, label in target.spans]

    def spelled(self, fields: Mapping[str, Any]) -> list[str]:
        """The labels of spans, or of words without what tags have before them."""
        value: Any = next((fields[name] for name in (self.task.label_field, "tags", "spans") if name in fields), [])
        items = value if isinstance(value, list) else []
        found = [item[2] if isinstance(item, list) and len(item) == 3 else item for item in items]
        return [parted(label)[1] or label for label in found if isinstance(label, str) and label != OUTSIDE]

    def strata(self, targets: Sequence[Marked]) -> list[str]:
        """By the labels of a text's spans."""
        return [" ".join(sorted({label for *_, label in marked.spans})) for marked in targets]

    def stacked(self, targets: Sequence[Marked]) -> Sequence[Marked]:
        return targets

    def examples(self, texts: Sequence[str], targets: Sequence[Marked], split: Split) -> TaggedExamples:
        embedder = split.embedder
        limit, words = embedder.length_limit(split.max_length), [marked.words for marked in targets]
        found = in_units(embedder.tokenizer, texts, limit, embedder.default_prompt, words)
        split.check_rows([units.rows[0] for units in found])
        rows = [row for units in found for row in units.rows]
        marks = torch.full((len(rows), max(map(len, rows))), NO_LABEL, dtype=torch.int16)
        at = lost = unseen = 0
        for units, marked in zip(found, targets, strict=True):
            for (window, place), tag in zip(units.places, tagged(units, marked.spans, self.index), strict=True):
                if tag in self.index:  # where each word has a label of its own, there is no O
                    marks[at + window, place] = self.index[tag]
            at += len(units.rows)
            unseen += len(marked.words or units.words) - len(units.words)
            if marked.words is None:
                edges = {edge for word in units.words for edge in word}
                lost += sum(start not in edges or end not in edges for start, end, _ in marked.spans)
        notes = []
        if lost:
            notes.append(f"{counted(lost, 'span')} cut through words; whole words are tagged, so such are never found")
        if unseen:
            notes.append(f"{counted(unseen, 'word')} without a token: such tags are neither learned nor found")
        split.cut = "; ".join(notes)
        if self.options.teacher and split.name == "train":
            marks = self.soft_marks(found, marks, teacher_tags(self.task, texts, words, split.folder))
        return TaggedExamples(rows, marks, 1, found, [marked.spans for marked in targets])

    def soft_marks(self, found: Sequence[Units], marks: Tensor, taught: Sequence[tuple[list[Word], Tensor]]) -> Tensor:
        """A teacher's probabilities on the first piece of each word, (rows, length, tags) float32, 0 elsewhere.

        ``marks`` are (rows, length), of which the size alone counts. A word that stands in none of the teacher's has
        none. A word that begins within one of the teacher's has that word's, as one that goes on with a span.
        """
        soft = torch.zeros(*marks.shape, len(self.tags), dtype=torch.float32)
        inner = [self.index.get(f"I-{label}", i) if prefix in "BS" else i
                 for i, (prefix, label) in enumerate(map(parted, self.tags))]  # fmt: skip
        goes_on = F.one_hot(torch.tensor(inner), len(self.tags)).float()
        at = 0
        for units, (words, said) in zip(found, taught, strict=True):
            for word, (window, place) in zip(units.words, units.places, strict=True):
                if (number := word_at(word, words)) is not None:
                    begins = words[number][0] >= word[0]
                    soft[at + window, place] = said[number] if begins else said[number] @ goes_on
            at += len(units.rows)
        return soft

    # Computing

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.tags

    def branch(self, dim: int) -> Branch:
        if not self.tags:
            raise RecipeError(
                f"task {self.task.name!r}: its labels are not known; name them in labels = [...]", "labels"
            )
        return Branch(EachToken(), new_head(self.options.head, dim, self.outputs, self.options.dropout))

    def by_row(self, outputs: Tensor, order: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """(rows, longest, tags): each row's tokens, filled up with 0."""
        rows = in_order([outputs], order, lengths).split([*lengths])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    @property
    def weighed(self) -> Mapping[str, Sequence[int]]:
        """Labels, each with all of its tags, and the tags themselves."""
        of_types = {name: [i for tag, i in self.index.items() if parted(tag)[1] == name] for name in self.types}
        return {**of_types, **{tag: [i] for tag, i in self.index.items()}}

    def balanced(self, examples: Examples) -> dict[str, float]:
        marks = examples.targets[examples.targets != NO_LABEL].long()
        return evenly(marks.bincount(minlength=len(self.tags)), self.tags)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        if targets.is_floating_point():
            return soft_cross_entropy(outputs, targets[:, : outputs.shape[1]])
        return token_cross_entropy(outputs, targets, self.weights, self.options.label_smoothing)

    def count(self, targets: Tensor) -> float:
        return float(targets.any(dim=-1).sum()) if targets.is_floating_point() else super().count(targets)

    def with_label(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        marks = targets[:, : outputs.shape[1]]
        if marks.is_floating_point():
            return outputs[marks.any(dim=-1)], marks[marks.any(dim=-1)]
        return outputs[marks != NO_LABEL], marks[marks != NO_LABEL].long()

    def labelled_examples(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        marks = torch.cat([own[: len(row)] for own, row in zip(examples.targets, examples.rows, strict=True)])
        return outputs[marks != NO_LABEL], marks[marks != NO_LABEL]

    # Measuring and showing

    def logits(self, outputs: Tensor, texts: Sequence[Units]) -> Iterator[Tensor]:
        rows = iter(outputs.split([len(row) for units in texts for row in filled(units.rows)]))
        for units in texts:
            own = [next(rows) for _ in units.rows]
            picked = [own[window][place] for window, place in units.places]
            yield torch.stack(picked) if picked else outputs.new_empty(0, outputs.shape[1])

    def spans(self, units: Units, logits: Tensor) -> list[dict[str, Any]]:
        """The spans that the likeliest tags of words say, in order; ``score`` is the mean of their probabilities."""
        best, tags = F.softmax(logits, dim=-1).max(dim=-1)
        found = []
        for i, j, label in runs([self.tags[tag] for tag in tags.tolist()], self.alone):
            start, end = units.words[i][0], units.words[j - 1][1]
            score = float(best[i:j].double().mean())
            found.append({"start": start, "end": end, "text": units.text[start:end], "label": label, "score": score})
        return found

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        raise NotImplementedError("spans are measured against whole texts; see measured")

    def measured(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        """Precision, recall and F1 of exact spans: of all together, and of each label."""
        counts = self.tally(outputs, examples).sums()
        return {**overall(counts), **by_label(self.types, counts)}

    def tally(self, outputs: Tensor, examples: Examples) -> Tally:
        """Spans, by text."""
        assert isinstance(examples, TaggedExamples)
        found = [
            [(span["start"], span["end"], span["label"]) for span in self.spans(units, logits)]
            for units, logits in zip(examples.texts, self.logits(outputs, examples.texts), strict=True)
        ]
        return tallied(examples.spans, found, self.types)

    def of_sums(self, counts: NDArray[np.float64]) -> dict[str, float]:
        return overall(counts)

    def detailed(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        """The calibration error is that of the words' likeliest tags."""
        logits, targets = self.labelled_examples(outputs, examples)
        confidence, said = logits.double().softmax(dim=1).max(dim=1)
        error = calibration_error(confidence.numpy(), (said == targets).numpy())
        counts = self.tally(outputs, examples).sums()
        return {**overall(counts), "ece": error, **by_label(self.types, counts)}


def whole(text: str, field: str) -> str:
    """The text; a ValueError if it holds half of a surrogate pair: no one can say which characters a span has."""
    if not is_unicode(text):
        raise ValueError(f"{field} holds half of a surrogate pair: {shown(text)}; expected Unicode")
    return text
