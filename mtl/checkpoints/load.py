"""From a local folder to what a model is made of: the encoder, its tokenizer, and what comes after the pooling.

Reads the folders that transformers and sentence-transformers write, of the families in families/. Opens nothing but
safetensors and JSON. Weights are memory-mapped; each page is read once, when they are seen to be finite.

A file's tensors are parted in two: the trunk, which must be complete and holds nothing else, and what lies beside it,
which is a classifier that is kept, or left out with a line that names it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mtl.checkpoints.families import FAMILIES, Family
from mtl.checkpoints.fields import CONFIG, PROMPTS, SENTENCE_CONFIGS
from mtl.checkpoints.files import check_tensors, inside, read_json, read_object, read_tensors, read_weights
from mtl.checkpoints.modules import (
    load_after,
    pooling_modes,
    read_cross_encoder,
    read_modules,
    read_prompts,
    read_sentence_config,
    score_activation,
)
from mtl.checkpoints.tokenizer import VERBATIM, class_of, load_tokenizer, read_options, takes_segments
from mtl.display import counted
from mtl.errors import ConfigError, MtlError, WeightsError, printable, shown
from mtl.kernels.uninitialized import uninitialized
from mtl.model.interface import Encoder
from mtl.model.pooling import After

log = logging.getLogger("mtl")

TASKS, BRANCHES = "tasks.json", "tasks.safetensors"
OF_SEQUENCES, OF_TOKENS = "ForSequenceClassification", "ForTokenClassification"  # transformers' architectures


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a model came with that no module holds: its family, config.json, and tokenizer_config.json's options.

    ``types`` are what the segments of a pair's texts add to their tokens, (segments, dim), the first 0.
    """

    model_type: str = "distilbert"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    types: Tensor | None = dataclasses.field(default=None, compare=False)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of sequences, by their first token or the mean of all, or of all tokens, if a folder holds one.

    ``kind`` is its form, as TaskSpec.head has it, or "tokens"; ``tensors`` are float32, under our head's names;
    ``labels`` the names of its outputs; ``problem_type`` is config.json's word for what they are. A cross-encoder's
    scores are the ``activation`` of its logits. Where ``problem`` says what is wrong, nothing else counts.
    """

    kind: str = "distilbert"
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problem_type: str = "single_label_classification"
    pooling: str = "cls"
    problem: str = ""
    activation: str = ""

    @property
    def outputs(self) -> int:
        return len(self.tensors["classifier.bias"])

    def names(self, family: Family, prefix: str = "") -> dict[str, str]:
        """Our head's tensors -> those of a family's; none where the family has no such head."""
        if self.kind == "tokens":  # one layer, or where a norm stands before it the hidden one too
            hidden = "pre_classifier.weight" in self.tensors if self.tensors else bool(family.head.norm)
            if hidden != bool(family.head.norm):
                return {}
            return family.head.names() if hidden else {name: name for name in ("classifier.weight", "classifier.bias")}
        return family.head.names(prefix) if family.has(self.kind) else {}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """All that a folder says of a model.

    ``after`` are the layers behind the pooling. ``tasks`` are the fields of our own tasks (mtl.tasks.spec.TaskSpec),
    ``branches`` the tensors of their poolings and heads. All tensors are float32. ``segments``: the tokenizer tells
    the texts of a pair apart.
    """

    encoder: Encoder
    tokenizer: Tokenizer
    max_length: int
    lowercase: bool = False
    pooling: tuple[str, ...] = ("mean",)
    after: tuple[After, ...] = ()
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str = ""
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None
    truncate_left: bool = False
    segments: bool = False
    classifier: Classifier | None = None
    tasks: tuple[dict[str, Any], ...] = ()
    branches: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    origin: Origin = Origin()

    @property
    def config(self) -> Any:
        return self.encoder.config


def family_of(fields: Mapping[str, Any], source: object = "config.json") -> Family:
    """The family that a config.json names; a ConfigError if it is none of ours."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"{source}: model_type is {shown(kind)}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def encoder_config(fields: Mapping[str, Any], source: Path) -> Any:
    """The encoder's shape from a config.json's content; a ConfigError for an unknown model type, or a variant that is
    not ours."""
    family = family_of(fields, source)
    CONFIG.review(fields, source, {**dict.fromkeys((*family.config, *family.aliases, *family.inert)), **family.fixed})
    try:
        return family.read_config(fields)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def part_tensors(
    tensors: Mapping[str, Tensor], family: Family, source: Path, unread: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors as the trunk and what lies beside it, the trunk's without what stands before their names.

    Whatever that is (nothing, "bert.", "model.", "0.auto_model."), it is what stands before the word embeddings' name.
    Old checkpoints call LayerNorm's weight gamma and its bias beta. What is ``unread`` is no part of the trunk. A
    WeightsError if there is no trunk, or more than one.
    """
    renamed = {re.sub(r"(LayerNorm)\.(gamma|beta)$", newer_name, name): x for name, x in tensors.items()}
    words = family.names(0)[family.words]
    prefixes = [name.removesuffix(words) for name in renamed if name == words or name.endswith("." + words)]
    if len(renamed) < len(tensors) or len(prefixes) > 1:
        raise WeightsError(f"{source} holds tensors twice: {words}, or a LayerNorm's; expected one encoder")
    if not prefixes:
        raise WeightsError(f"{source}: missing {words}; expected a {family.model_type}, with or without a head")
    trunk: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    roots = {name.split(".")[0] for name in family.names(1).values()}
    for name, tensor in renamed.items():
        inner = name.removeprefix(prefixes[0])
        within = name.startswith(prefixes[0]) and (prefixes[0] != "" or inner.split(".")[0] in roots)
        apart = inner in (*family.beside, *unread) or inner.startswith("pooler.")
        (trunk if within and not apart else beside)[inner if name.startswith(prefixes[0]) else name] = tensor
    return trunk, beside


def newer_name(match: re.Match[str]) -> str:
    return f"{match[1]}.{'weight' if match[2] == 'gamma' else 'bias'}"


def check_layers(config: Any, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise a WeightsError if a file holds fewer layers than its config says, before an encoder of so many is built."""
    held = len({match[1] for name in tensors if (match := re.search(r"layers?\.(\d+)\.", name))})
    if config.n_layers > held:
        raise WeightsError(f"{source} holds {held} layers, but its config says {config.n_layers}")


def load_encoder(
    folder: Path, part: str = "", cross: Mapping[str, Any] | None = None
) -> tuple[Encoder, Classifier | None, dict[str, Any], Tensor | None]:
    """The encoder in a model's folder, in eval mode; its classifier, if it has one; config.json's content; and what
    its token types are beyond the first. ``cross`` is what the folder says of a cross-encoder."""
    source = inside(folder, part, "config.json")
    fields = read_object(source)
    config, family = encoder_config(fields, source), family_of(fields, source)
    tensors, path = read_weights(folder, part)
    trunk, beside = part_tensors(tensors, family, path, family.unread(fields))
    check_layers(config, trunk, path)
    with uninitialized():
        encoder = family.encoder(config).eval()
    again = [name for name in beside if trunk.keys() & ends(name)]
    if again:
        raise WeightsError(
            f"{path} holds tensors twice: {printable(again[0])} is the encoder's too; expected one encoder"
        )
    shapes = family.shapes({name: tuple(x.shape) for name, x in encoder.state_dict().items()}, config, fields)
    say_dtype(fields, trunk, source)
    trunk = check_tensors(trunk, shapes, path)
    encoder.load_state_dict(family.fold(trunk, config, fields), assign=True)
    classifier = read_classifier(beside, family, fields, config.dim, source, path, cross or {})
    used = classifier.names(family).values() if classifier and not classifier.problem else ()
    say_left_out([name for name in beside if name not in used], family, path)
    return encoder, classifier, fields, family.types_apart(trunk)


def say_dtype(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> None:
    """One line where config.json says fewer bits than the weights have: they are used as they lie, as transformers 4
    does; transformers 5 rounds them unless it is given a dtype."""
    said = str(fields.get("dtype") or fields.get("torch_dtype")).removeprefix("torch.")
    if said in ("float16", "bfloat16") and any(x.dtype == torch.float32 for x in tensors.values()):
        log.warning("%s says dtype %s, but weights are float32: they are used as they are, not rounded", source, said)


def ends(name: str) -> set[str]:
    """What a dotted name is without its first words."""
    words = name.split(".")
    return {".".join(words[i:]) for i in range(1, len(words))}


def say_left_out(names: list[str], family: Family, source: Path) -> None:
    """One line that names what lies beside the trunk and is not used; what every such file has is for those who ask."""
    ordinary = [name for name in names if name in family.beside or name.startswith("pooler.")]
    heads = sorted(set(names) - set(ordinary))
    if names:
        listed = ", ".join(map(printable, (heads or ordinary)[:12])) + (", ..." if len(heads or ordinary) > 12 else "")
        log.log(logging.WARNING if heads else logging.INFO, "%s: left out, beside the encoder: %s", source, listed)


def read_classifier(
    beside: Mapping[str, Tensor],
    family: Family,
    fields: Mapping[str, Any],
    dim: int,
    source: Path,
    path: Path,
    cross: Mapping[str, Any],
) -> Classifier | None:
    """The classifier among the tensors beside a trunk; none where they hold nothing of the kind.

    What is wrong with it is kept for those who want to predict: the embeddings are none the worse.
    """
    listed: Any = fields.get("architectures")
    with_heads = [x for x in listed if isinstance(x, str) and "For" in x] if isinstance(listed, list) else []
    architecture = with_heads[0] if with_heads else OF_SEQUENCES
    of_tokens = architecture.endswith(OF_TOKENS)
    kind = "tokens" if of_tokens else family.head.kind_of(fields)
    names = Classifier(kind).names(family)
    if names.get("classifier.weight") not in beside or not architecture.endswith((OF_SEQUENCES, OF_TOKENS)):
        return None
    held = {ours: beside[theirs] for ours, theirs in names.items() if theirs in beside}
    last = held["classifier.weight"].shape
    outputs = last[0] if last else 1
    shapes = {"pre_classifier.weight": (dim, dim), "pre_classifier.bias": (dim,), "norm.weight": (dim,),
              "classifier.weight": (outputs, dim), "classifier.bias": (outputs,)}  # fmt: skip
    shapes = {name: shapes[name] for name in names}
    try:
        linear = of_tokens and not family.head.norm
        if linear and not family.head.pooler and f"{family.head.hidden}.weight" in beside:
            raise ConfigError(f"{path} has {family.head.hidden} before its tagger; expected one linear layer alone")
        pooling = "cls" if linear else family.head.pooling(fields)
        tensors = check_tensors(held, shapes, path)
        problem_type = fields.get("problem_type")
        # One output without a word is a sigmoid's, as transformers' pipeline takes it
        by_default = "multi_label_classification" if outputs == 1 else "single_label_classification"
        kinds = ("multi_label_classification", "regression" if outputs == 1 else "single_label_classification")
        if problem_type not in (None, *kinds) and not of_tokens:
            expected = f"one of {', '.join(kinds)} with {counted(outputs, 'output')}"
            raise ConfigError(f"{source}: problem_type is {shown(problem_type)}; expected {expected}")
        labels = head_labels(fields, outputs, source)
        activation = "" if of_tokens else score_activation(fields, cross, outputs, source)
        return Classifier(kind, tensors, labels, problem_type or by_default, pooling, activation=activation)
    except MtlError as error:
        return Classifier(problem=str(error))


def head_labels(fields: Mapping[str, Any], outputs: int, source: Path) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order; LABEL_0 and so on where the config has none. Names that are not
    one for each output are a ConfigError."""
    labels = fields.get("id2label")
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not labels:
        return tuple(f"LABEL_{i}" for i in range(outputs))
    named = {str(i): label for i, label in labels.items()} if isinstance(labels, dict) else {}
    right = all(isinstance(x, (str, int)) for x in named.values()) and len({*map(str, named.values())}) == outputs
    if named.keys() != {str(i) for i in range(outputs)} or not right:
        raise ConfigError(
            f"{source}: id2label is {shown(labels)}; expected another name for each of 0 to {outputs - 1}"
        )
    return tuple(str(named[str(i)]) for i in range(outputs))


def length_limit(sentence: Mapping[str, Any], options: Mapping[str, Any], positions: int, source: Path) -> int:
    """Tokens per text: sentence-transformers' limit, or the tokenizer's, and never more than there are positions; a
    ConfigError if it is no positive number (transformers writes 1e30 for no limit)."""
    for fields, name in ((sentence, "max_seq_length"), (options, "model_max_length"), (options, "max_len")):
        limit = fields.get(name)
        if limit is not None:
            if type(limit) not in (int, float) or not limit >= 1:
                raise ConfigError(f"{source}: {name} is {shown(limit)}; expected a positive number of tokens")
            return int(min(limit, positions))
    return positions


def of_transformers_4(config: Mapping[str, Any]) -> bool:
    """Whether config.json was written by transformers 4 or before, where a tokenizer of no class of its own tells the
    texts of a pair apart if no file says otherwise; in 5 it does not, of the same folder."""
    major, _, _ = str(config.get("transformers_version")).partition(".")
    return major in ("2", "3", "4")


def load_tasks(folder: Path) -> tuple[dict[str, Any], ...]:
    """The fields of our own tasks, one object each; a folder that others wrote has none."""
    path = inside(folder, TASKS)
    tasks = read_json(path) if path.exists() else []
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise WeightsError(f"{path}: expected a list of objects, one per task")
    return tuple(tasks)


def load(folder: Path) -> Checkpoint:
    """Read a model folder that transformers or sentence-transformers wrote, or ``mtl.checkpoints.save``.

    Raises:
        ConfigError, WeightsError: the folder describes no model of ours, or its files are not whole.
    """
    modules = read_modules(folder)
    part = modules[0][1]
    bare = not inside(folder, "modules.json").exists()
    cross, inner = read_cross_encoder(folder, part) if len(modules) == 1 and not bare else ({}, {})
    unread = [name for name in (*SENTENCE_CONFIGS, PROMPTS.name) if bare and inside(folder, name).exists()]
    if unread:  # as sentence-transformers does
        log.warning("%s has no modules.json: passed over: %s", folder, ", ".join(unread))
    if inside(folder, part, "adapter_config.json").exists():
        raise WeightsError(
            f"{folder / part} holds an adapter; merge it into the model (merge_and_unload) and save that"
        )
    pooling = pooling_modes(inside(folder, modules[1][1], "config.json")) if len(modules) > 1 else ("mean",)
    encoder, classifier, config, types = load_encoder(folder, part, cross)
    family = FAMILIES[config["model_type"]]
    sentence, source = read_sentence_config(folder, part) if len(modules) > 1 else (inner, folder)
    options = read_options(folder, part, sentence.get("processor_kwargs"))
    name = class_of(options, config, family.tokenizer, inside(folder, part, "tokenizer.json").exists())
    if name in VERBATIM and family.token_types and "model_input_names" not in options and of_transformers_4(config):
        options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        log.info("%s: the texts of a pair are told apart, as by transformers 4, which wrote it; 5 does not", folder)
    tokenizer, side = load_tokenizer(folder, part, options, name)
    if len(modules) == 1 and ("chat_template" in options or inside(folder, "chat_template.jinja").exists()):
        log.warning("%s has a chat_template, which is not followed: texts are taken as they are", folder)
    tasks = load_tasks(folder)
    return Checkpoint(
        encoder=encoder,
        tokenizer=tokenizer,
        max_length=length_limit(sentence, options, encoder.config.max_position_embeddings, source.parent),
        lowercase=bool(sentence.get("do_lower_case")),
        pooling=pooling,
        after=load_after(folder, modules[2:], len(pooling) * encoder.config.dim),
        **(read_prompts(folder) if len(modules) > 1 else {}),
        truncate_left=side == "left",
        segments=takes_segments(options, name),
        classifier=classifier,
        tasks=tasks,
        branches=read_tensors(inside(folder, BRANCHES)) if tasks else {},
        origin=Origin(family.model_type, config, {**options, "tokenizer_class": name}, types),
    )
