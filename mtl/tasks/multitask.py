"""MultiTaskModel: one trunk, and for each task a pooling and a head of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Self, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtl.checkpoints import load
from mtl.checkpoints import save as export
from mtl.checkpoints.fetch import fetch
from mtl.checkpoints.files import check_tensors
from mtl.checkpoints.publish import PushOptions, push_saved
from mtl.encode.batching import in_order
from mtl.encode.engine import Engine, usable
from mtl.encode.precision import Precision, effective
from mtl.encode.sentence_encoder import WINDOW, SentenceEncoder
from mtl.encode.tokenizer import Text, check_texts, pairs_or_texts, several
from mtl.encode.windows import Block, in_blocks, tokenized_windows, warn_of_cuts
from mtl.errors import ConfigError, InputError, RecipeError, WeightsError, check_counts, check_flags, one_line, shown
from mtl.kernels.compile import Plain, check_saveable, overridden
from mtl.kernels.int8 import LEAST_COSINE
from mtl.kernels.vectors import Pooled, Vectors, plain
from mtl.kernels.watched import SAMPLES, SAMPLES_MAPPED, Compiled
from mtl.model.dropout import no_dropout
from mtl.model.heads import Branch
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch
from mtl.tasks.classifier import as_classifier, as_task
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.base import HeadKind, Kind
from mtl.tasks.spans import Units, in_units
from mtl.tasks.spec import TaskSpec, checked_tasks

log = logging.getLogger("mtl")

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one forward pass says of texts: their embeddings, and per task a row for each text.

    A "tokens" task has for each text the logits and scores of its words, (words, tags), and a list of its spans.
    """

    embeddings: NDArray[np.float32]
    logits: dict[str, Any]
    scores: dict[str, Any]
    labels: dict[str, list[Any]]  # a label, a list of labels or of spans, or a number for each text


class Ranked(TypedDict):
    """A text's place among those that were ranked, its score, and the text itself where it is asked for."""

    corpus_id: int
    score: float
    text: NotRequired[str]


class Outputs(NamedTuple):
    """Embeddings and logits of texts side by side, (texts, sum of the widths), and by tagger the words of each text
    with their logits, (words, tags)."""

    texts: Tensor
    words: dict[str, list[tuple[Units, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Program:
    """What inference computes of a MultiTaskModel: the program of its embedder, and of each task's branch.

    ``units`` turns what a task's branch gives into the units of its data.
    """

    embedder: Vectors
    heads: Mapping[str, Pooled | Plain]
    units: Callable[[str, Tensor], Tensor]

    def __call__(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As MultiTaskModel.forward. The embeddings have the bits that they have without the tasks."""
        if not self.heads:
            return self.embedder(batch), {}
        embeddings, x = self.embedder.with_hidden(batch)
        return embeddings, {name: self.units(name, head(x, batch)) for name, head in self.heads.items()}

    def of(self, task: str, batch: PackedBatch) -> Tensor:
        """One task's logits, or its vectors: (texts, outputs)."""
        if task not in self.heads:
            return self.embedder(batch)
        return self.units(task, self.heads[task](self.embedder.encoder(batch).float(), batch))


class MultiTaskModel(nn.Module):
    """One trunk, and a branch per task: a pooling and a head, or for pairs of texts those of the embeddings.

    ``embedder`` is the trunk with the tokenizer and the pooling of its embeddings. A task's tensors are
    ``branches.<task>.pooling.*`` and ``branches.<task>.head.*``.
    """

    def __init__(self, embedder: SentenceEncoder, tasks: Sequence[TaskSpec]) -> None:
        if isinstance(embedder, (str, Path)):
            loads = f"{type(self).__name__}.from_pretrained({str(embedder)!r})"
            raise InputError(f"embedder is {shown(str(embedder))}; expected a SentenceEncoder; {loads} loads a model")
        super().__init__()
        self.embedder = embedder
        tasks = [task.handler.on(embedder) for task in checked_tasks(tasks)]
        self.tasks = {task.name: task for task in tasks}
        for task in tasks:
            if max(task.matryoshka, default=0) > embedder.width:
                given = f"task {task.name!r}: matryoshka is {list(task.matryoshka)}"
                raise RecipeError(f"{given}; expected at most {embedder.width}, the model's dimensions", "matryoshka")
        if any(task.handler.joint for task in tasks):
            embedder.read_pairs()
        dim = embedder.encoder.config.dim
        with embedder.device:  # and not on whatever default device the caller has set
            branches = {task.name: branch for task in tasks if (branch := task.handler.branch(dim))}
        self.branches = nn.ModuleDict(branches)
        self.compiled: Compiled[Program | Plain] = Compiled()

    @property
    def encoder(self) -> Encoder:
        return self.embedder.encoder

    def branch(self, task: str) -> Branch:
        """A task's pooling and what stands behind it, as they are trained: its own, or the embedder's."""
        if task not in self.branches or self.tasks[task].handler.embeds:
            return Branch(self.embedder.pooling, self.embedder.after)
        return self.own_branch(task)

    def own_branch(self, task: str) -> Branch:
        found = self.branches[task]
        assert isinstance(found, Branch)
        return found

    def outputs(self, task: str) -> int:
        """The width of what a branch gives: logits, or the dimensions of an embedding."""
        return self.tasks[task].outputs if task in self.branches else self.embedder.width

    def head_kind(self, task: str) -> HeadKind:
        """The handler of a task that has a branch."""
        handler = self.tasks[task].handler
        assert isinstance(handler, HeadKind)
        return handler

    def fit(self, data: Mapping[str, Examples]) -> None:
        """Keep with each task what its kind takes from its training data, as the scale of a regression's numbers."""
        self.tasks.update({name: self.tasks[name].handler.fitted(examples) for name, examples in data.items()})

    def fit_on_dev(self, outputs: Mapping[str, Tensor], data: Mapping[str, Examples]) -> list[str]:
        """Keep with each task what its kind takes from its dev data and their outputs; a line for each such thing."""
        found = {name: self.tasks[name].handler.fitted_on_dev(x, data[name]) for name, x in outputs.items()}
        self.tasks.update({name: task for name, (task, _) in found.items()})
        return [note for _, notes in found.values() for note in notes]

    def fit_heads(self, data: Mapping[str, Examples], threads: int | None = None) -> None:
        """Fit the heads that steps do not train on the vectors that training data have now."""
        for name in self.branches:
            handler, branch, examples = self.tasks[name].handler, self.own_branch(name), data[name]
            if not (rows := handler.texts_to_fit(examples)):
                continue
            vectors = Engine(partial(self.pooled, branch.pooling), self.embedder.device, threads=threads).run(rows)
            weight, bias = handler.fit_head(vectors, examples)
            branch.head.load_state_dict({"classifier.weight": weight, "classifier.bias": bias})

    def pooled(self, pooling: nn.Module, batch: PackedBatch) -> Tensor:
        """What inference computes of a pooling of hidden states: (texts, features)."""
        program = self.program()
        found: Tensor = pooling((program.embedder if isinstance(program, Program) else self).hidden(batch), batch)
        return found

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        int8_least_cosine: float = LEAST_COSINE,
    ) -> MultiTaskModel:
        """A model with its heads, in eval mode: a folder that ``save`` wrote, a classifier, or a tagger.

        ``precision`` is what its encoder computes in; see SentenceEncoder.from_pretrained, as for
        ``int8_least_cosine``, which is asked of the embeddings.

        Raises:
            ConfigError, WeightsError: it cannot be found, is not what it should be, or has no heads.
            InputError: an unknown precision, or one that the device has not.
        """
        place = usable(device)
        chosen = effective(precision, place, int8_least_cosine)
        checkpoint = load.load(fetch(str(name), revision))
        if not checkpoint.tasks and not checkpoint.classifier:
            raise WeightsError(f"{name} has no task heads; train some with `mtl train`, or use it as an encoder")
        model = cls.from_checkpoint(checkpoint).to(place)
        model.embedder.computes(chosen, place, int8_least_cosine)
        return model

    @classmethod
    def from_checkpoint(cls, checkpoint: load.Checkpoint) -> MultiTaskModel:
        """The model that a folder's content describes, in eval mode.

        Without tasks of ours, a classifier becomes a task called "classification", a tagger one called "tokens".
        """
        branches, head = checkpoint.branches, checkpoint.classifier
        try:
            tasks = [TaskSpec(**fields) for fields in checkpoint.tasks]
            if not tasks and head:
                tasks = [as_task(head)]
                branches = {f"{tasks[0].name}.head.{name}": tensor for name, tensor in head.tensors.items()}
        except (TypeError, RecipeError) as error:
            raise ConfigError(f"{'tasks.json' if checkpoint.tasks else 'config.json'}: {one_line(error)}") from None
        model = cls(SentenceEncoder.from_checkpoint(checkpoint), tasks)
        expected = {name: tensor.shape for name, tensor in model.branches.state_dict().items()}
        model.branches.load_state_dict(check_tensors(branches, expected, load.BRANCHES))
        return model.eval()

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained`` loads, and sentence-transformers for its embeddings.

        A model whose one task has its family's own head over the first token is a classifier to transformers too, and
        one whose one task is "tokens" a tagger.

        Raises:
            WeightsError: the folder is not empty or cannot be written.
        """
        checkpoint = self.embedder.to_checkpoint()
        for part in (part for branch in self.branches.values() for part in branch.children()):
            check_saveable(part)
        joint = {"joint": True}  # said of those kinds too that know no other, as others ask for no kind by its name
        specs = tuple(task.as_saved() | (joint if task.handler.joint is True else {}) for task in self.tasks.values())
        tensors = {name: tensor.detach() for name, tensor in self.branches.state_dict().items()}
        head = None
        if len(self.tasks) == len(self.branches) == 1:
            ((name, task),) = self.tasks.items()
            head = as_classifier(task, self.own_branch(name).head.state_dict(), self.embedder.origin.family)
        checkpoint = dataclasses.replace(checkpoint, classifier=head, tasks=specs, branches=tensors)
        export.save(checkpoint, Path(folder))

    def push_to_hub(self, repo_id: str, *, onnx: bool = False, **options: Unpack[PushOptions]) -> str:
        """Commit what ``save`` writes to a repository of the hub; see SentenceEncoder.push_to_hub."""
        return push_saved(self.save, repo_id, options, onnx)

    def program(self) -> Program | Plain:
        """What inference computes with, made anew where this model has changed; see SentenceEncoder.program."""
        samples = SAMPLES_MAPPED if self.embedder.mapped else SAMPLES
        key = self.embedder.precision, self.embedder.int8_least_cosine
        return self.compiled.of(self, key, self._compile, samples)

    def _compile(self) -> tuple[Program | Plain, list[Plain]]:
        if whole := overridden(self, FORWARD):
            return whole, [whole]
        embedder = self.embedder.program()
        vectors = embedder if isinstance(embedder, Vectors) else self.embedder.vectors()
        program = Program(vectors, {name: Pooled.of(part) for name, part in self.branches.items()}, self.in_units)
        return program, [*vectors.plain, *plain(*program.heads.values())]

    def outputs_of(self, task: str) -> Callable[[PackedBatch], Tensor]:
        """What inference computes a task's logits with, or its vectors: PackedBatch -> (texts, outputs)."""
        program = self.program()
        if isinstance(program, Program):
            return partial(program.of, task)

        def outputs(batch: PackedBatch) -> Tensor:
            vectors, logits = program(batch)
            return logits.get(task, vectors)

        return outputs

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.compiled.clear()
        return super().train(mode)

    def hidden(self, batch: PackedBatch, depth: int | None = None) -> Tensor:
        """The last hidden states (tokens, dim); the embeddings and blocks below ``depth`` are held fixed.

        They are float32 at least: poolings and heads know no lower precision.
        """
        if depth is None:
            x = self.encoder(batch)
            return x.to(torch.promote_types(x.dtype, torch.float32))
        with held_fixed():
            x = self.encoder.run(self.encoder.embed(batch), batch, stop=depth)
        return self.encoder.run(x, batch, start=depth)

    def forward(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The embeddings (texts, dim), and each task's logits (texts, outputs), from one pass of the trunk."""
        x = self.hidden(batch)
        embeddings = self.embedder.after(self.embedder.pooling(x, batch))
        return embeddings, {name: self.in_units(name, branch(x, batch)) for name, branch in self.branches.items()}

    def in_units(self, task: str, outputs: Tensor) -> Tensor:
        """What a task's branch gives, in the units of its data."""
        return self.tasks[task].handler.in_units(outputs)

    def predict(self, texts: str | Iterable[Text], threads: int | None = None) -> Prediction:
        """Embeddings, logits, probabilities and labels of texts. A text beyond the limit is cut, with a warning.

        ``labels`` are, by the task's kind, a label per text, the labels from their thresholds on, or a value. Of
        pairs, as in [("premise", "hypothesis")], the tasks answer that read two texts in one row ("joint"), and there
        are no embeddings, (pairs, 0); of texts, the others.

        Raises:
            InputError: something in texts is no string or no pair, no task reads such, or ``threads`` is no number of
                threads.
        """
        several_texts = [texts] if isinstance(texts, str) else several(texts)
        ahead = not isinstance(several_texts, Sized) or len(several_texts) > WINDOW
        pairs, listed = pairs_or_texts(several_texts)
        pairs = pairs or (isinstance(several_texts, Sized) and not len(several_texts) and self.only_pairs)
        parts = [outputs for _, outputs in self._outputs(in_blocks(listed, WINDOW), threads, ahead, pairs)]
        none = torch.empty(0, sum(self.widths(pairs)), dtype=torch.float32, device="cpu")
        words = {name: [found for part in parts for found in part.words[name]] for name in self.taggers(pairs)}
        return self._prediction(Outputs(torch.cat([none, *(part.texts for part in parts)]), words), pairs)

    def rank(
        self,
        query: str,
        texts: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        task: str | None = None,
        threads: int | None = None,
    ) -> list[Ranked]:
        """Texts by how well each goes with a query, the best first; of equal scores the first of the texts is first.

        Each text is read together with the query, in one row. ``top_k``: no more than so many; ``task``: which of
        several that give pairs a score.

        Raises:
            InputError: the query is no string, or no task gives a pair of texts one score, or several do.
        """
        if not isinstance(query, str):
            raise InputError(f"query is {shown(query)}; expected a string")
        check_counts(top_k=top_k)
        check_flags(return_documents=return_documents)
        name, listed = self.ranker(task), list(check_texts(list(several(texts))))
        found = self.predict([(query, text) for text in listed], threads).scores[name] if listed else np.empty((0, 1))
        order = np.argsort(-found[:, 0], kind="stable")[:top_k].tolist()
        ranked = [Ranked(corpus_id=i, score=float(found[i, 0])) for i in order]
        return [{**hit, "text": listed[hit["corpus_id"]]} for hit in ranked] if return_documents else ranked

    def ranker(self, task: str | None = None) -> str:
        """The task that gives a pair of texts one score.

        Raises:
            InputError: there is none, or another one is named, or none of several.
        """
        names = [name for name in self.pair_heads if self.outputs(name) == 1]
        if not names:
            given = "several outputs for a pair" if self.pair_heads else "tasks that read one text at a time"
            given = given if self.tasks else "no tasks"
            raise InputError(f"the model has {given}; expected a cross-encoder, which gives a pair of texts one score")
        if task is not None and task not in names:
            raise InputError(f"task is {shown(task)}; expected one of {', '.join(names)}")
        if task is None and len(names) > 1:
            raise InputError(f"the tasks {', '.join(names)} give a pair one score; name one as task")
        return task or names[0]

    def predict_stream(
        self, texts: Iterable[Text], threads: int | None = None, *, window: int = WINDOW
    ) -> Iterator[Prediction]:
        """As ``predict``, for texts that need not fit in memory: a prediction per window of texts, in order."""
        check_counts(window=window)
        pairs, listed = pairs_or_texts(several(texts))
        found = self._outputs(in_blocks(listed, window), threads, True, pairs)
        return (self._prediction(outputs, pairs) for _, outputs in found)

    def predict_rows(
        self,
        rows: Iterable[R],
        text: Callable[[R], Text],
        threads: int | None = None,
        *,
        window: int = WINDOW,
        pairs: bool = False,
    ) -> Iterator[tuple[list[R], Prediction]]:
        """Rows of any kind with what is said of them, a window at a time; ``text`` gives a row's text, or with
        ``pairs`` its pair of texts."""
        check_counts(window=window)
        found = self._outputs(in_blocks(rows, window, text), threads, True, pairs)
        return ((part, self._prediction(outputs, pairs)) for part, outputs in found)

    def widths(self, pairs: bool = False) -> list[int]:
        """Of the embeddings and of each branch's logits of texts or pairs, as they stand side by side."""
        heads = self.pair_heads if pairs else self.text_heads
        return [0 if pairs else self.embedder.width, *map(self.outputs, heads)]

    @property
    def text_heads(self) -> list[str]:
        """The tasks that have a branch with an output for each text."""
        heads = [name for name in self.branches if self.tasks[name].handler.level == "text"]
        return [name for name in heads if self.tasks[name].handler.joint is not True]

    @property
    def pair_heads(self) -> list[str]:
        """The tasks that have a branch with an output for each pair of texts."""
        return [name for name in self.branches if self.tasks[name].handler.joint]

    @property
    def only_pairs(self) -> bool:
        """Whether it has heads for pairs of texts, and none for single ones."""
        return bool(self.pair_heads) and not self.text_heads and not self.taggers()

    @property
    def pair_fields(self) -> tuple[str, str]:
        """What the two texts of a pair are called."""
        named = [self.tasks[name].text_field for name in self.pair_heads]
        return next(((one, other) for one, other, *_ in (fields for fields in named if len(fields) > 1)), ("a", "b"))

    def taggers(self, pairs: bool = False) -> dict[str, Kind]:
        """The handlers of the tasks that have an output for each token of a text."""
        tasks = {} if pairs else self.tasks
        return {name: task.handler for name, task in tasks.items() if task.handler.level == "token"}

    def _check_reads(self, pairs: bool) -> None:
        """Raise an InputError if no task reads pairs, or texts."""
        if pairs and not self.pair_heads:
            raise InputError("the model has no task that reads pairs of texts; expected texts, each a string")
        if not pairs and self.only_pairs:
            raise InputError('the model reads pairs of texts; expected such, as in [("a text", "another")]')

    def side_by_side(self, pairs: bool = False) -> Callable[[PackedBatch], tuple[Tensor, Tensor]]:
        """What inference computes of texts: embeddings and each head's logits, (texts, sum of ``widths``), and those of
        taggers, (tokens, outputs); of ``pairs``, the logits of the heads that read such."""
        program, taggers = self.program(), self.taggers(pairs)
        heads = self.pair_heads if pairs else self.text_heads

        def outputs(batch: PackedBatch) -> tuple[Tensor, Tensor]:
            embeddings, logits = program(batch)
            of_tokens = [logits[name] for name in taggers]
            of_texts = [embeddings[:, : 0 if pairs else None], *(logits[name] for name in heads)]
            return torch.cat(of_texts, dim=1), torch.cat(of_tokens or [embeddings[:0]], dim=1)

        return outputs

    def columns(self, outputs: Tensor, pairs: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (texts, dimensions) and each head's logits, of what ``side_by_side`` gives of texts or pairs."""
        embeddings, *columns = outputs.split(self.widths(pairs), dim=1)
        heads = self.pair_heads if pairs else self.text_heads
        return embeddings[:, : self.embedder.dim], dict(zip(heads, columns, strict=True))

    def _outputs(
        self, blocks: Iterable[Block[R]], threads: int | None, ahead: bool = True, pairs: bool = False
    ) -> Iterator[tuple[R, Outputs]]:
        """Each block's rows, with what is computed of them, on the CPU."""
        check_counts(threads=threads)
        self._check_reads(pairs)
        return self._computed(blocks, threads, ahead, pairs)

    def _computed(
        self, blocks: Iterable[Block[R]], threads: int | None, ahead: bool, pairs: bool
    ) -> Iterator[tuple[R, Outputs]]:
        taggers, tokenizer, prompt = self.taggers(pairs), self.embedder.tokenizer, self.embedder.default_prompt
        engine = Engine(self.side_by_side(pairs), self.embedder.device, threads=threads)
        windows = tokenized_windows(blocks, tokenizer, prompt, ahead=ahead, pairs=pairs)
        advice = "; tags are of whole texts" if taggers else ""
        for part in warn_of_cuts(windows, tokenizer.max_length, advice, "pair" if pairs else "text"):
            rows, units = part.tokenized.rows, []
            if taggers:
                units = in_units(tokenizer, [*dict.fromkeys(part.texts)], tokenizer.max_length, prompt)
                rows = rows + [row for found in units if len(found.rows) > 1 for row in found.rows]
            order, parts = engine.computed(rows)
            texts, tokens = zip(*parts, strict=True)
            vectors = part.vectors(in_order(texts, order)[: len(part.tokenized.rows)]).cpu()
            lengths = [*map(len, rows)]
            words = self.words(units, in_order(tokens, order, lengths).cpu().split(lengths)) if taggers else {}
            of_text = {name: [(units[i], found[i]) for i in part.inverse] for name, found in words.items()}
            yield part.rows, Outputs(vectors, of_text)

    def words(self, units: Sequence[Units], rows: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """By tagger, the logits of each text's words, from those of the tokens of rows: of texts, perhaps cut, and
        behind them of the windows of those that have several."""
        numbers: list[int] = []
        behind = iter(range(len(units), len(rows)))
        for i, found in enumerate(units):
            numbers += [i] if len(found.rows) == 1 else [next(behind) for _ in found.rows]
        tokens = torch.cat([rows[number] for number in numbers])
        columns = tokens.split([handler.outputs for handler in self.taggers().values()], dim=1)
        named = zip(self.taggers().items(), columns, strict=True)
        return {name: [*handler.logits(x, units)] for (name, handler), x in named}

    def _prediction(self, outputs: Outputs, pairs: bool = False) -> Prediction:
        """What embeddings and logits say."""
        embeddings, logits = self.columns(outputs.texts, pairs)
        taggers = self.taggers(pairs)
        kinds = {name: self.head_kind(name) for name in logits}
        scores = {name: kinds[name].scores(x) for name, x in logits.items()}
        return Prediction(
            embeddings.numpy(),
            {name: x.numpy() for name, x in logits.items()}
            | {name: [x.numpy() for _, x in found] for name, found in outputs.words.items()},
            {name: x.numpy() for name, x in scores.items()}
            | {name: [x.softmax(dim=-1).numpy() for _, x in found] for name, found in outputs.words.items()},
            {name: kinds[name].words(x) for name, x in scores.items()}
            | {name: [taggers[name].spans(*of_text) for of_text in found] for name, found in outputs.words.items()},
        )


def with_heads(
    name: str | Path,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    int8_least_cosine: float = LEAST_COSINE,
) -> SentenceEncoder | MultiTaskModel:
    """A pretrained model in eval mode, with its heads where it has any; it raises what ``from_pretrained`` does."""
    place = usable(device)
    chosen = effective(precision, place, int8_least_cosine)
    checkpoint = load.load(folder := fetch(str(name)))
    head = checkpoint.classifier
    if checkpoint.tasks or (head and not head.problem):
        model = MultiTaskModel.from_checkpoint(checkpoint).to(place)
        model.embedder.computes(chosen, place, int8_least_cosine)
        return model
    if head:
        log.warning("%s: left out, beside the encoder: its classifier: %s", folder, head.problem)
    return SentenceEncoder.from_checkpoint(checkpoint).to(place).computes(chosen, place, int8_least_cosine)


FORWARD = MultiTaskModel.forward  # as it is before anybody replaces it


@contextmanager
def held_fixed() -> Iterator[None]:
    """Within it, what is computed has no graph and no dropout."""
    with no_dropout(), torch.no_grad():
        yield
