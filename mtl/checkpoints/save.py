"""From a model to a folder that transformers, sentence-transformers and ``mtl.checkpoints.load`` all read.

The inverse of ``load``: what came as one family is written as that family, with the settings that it came with. It
writes the older form of each file, which old and new readers understand. The folder appears whole or not at all: it is
written under a temporary name, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.checkpoints.card import README, card, public_name, results_of
from mtl.checkpoints.families import DISTILBERT, FAMILIES, Family
from mtl.checkpoints.load import BRANCHES, TASKS, Checkpoint, Classifier
from mtl.checkpoints.modules import POOLING_SWITCHES
from mtl.checkpoints.tokenizer import is_token, state, text_of
from mtl.checkpoints.tokenizer_kinds import KINDS
from mtl.disk import atomic_write, write_parts
from mtl.errors import WeightsError
from mtl.model.pooling import Dense, LayerNorm

log = logging.getLogger("mtl")

MODULES = "sentence_transformers.models"
NEWER = {"layer_types", "rope_parameters"}  # fields of config.json that transformers 5 reads, and 4 does not
# What a config.json said that is no longer so, since weights are written as float32, under names of our own choice
OUTDATED = ("torch_dtype", "dtype", "_name_or_path", "transformers_version", "auto_map", "num_labels", "id2label",
            "label2id", "problem_type", "sentence_transformers", "sbert_ce_default_activation_function")  # fmt: skip
TOKENIZER_OUTDATED = ("extra_special_tokens", "max_len", "auto_map", "name_or_path", "tokenizer_file", "vocab_file",
                      "merges_file", "special_tokens_map_file", "files_loaded", "is_local", "local_files_only",
                      "backend", "max_length", "stride", "truncation_strategy")  # fmt: skip

DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
          torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def serialized(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file's bytes as transformers marks its own: the header, then one tensor after another.

    Whatever a model computes in, floating-point numbers are written as float32. The format is
    https://github.com/huggingface/safetensors, and the order its library's: the widest first, by name.
    """
    as_written = {name: torch.float32 if x.is_floating_point() else x.dtype for name, x in tensors.items()}
    order = sorted(tensors, key=lambda name: (-as_written[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * as_written[name].itemsize
        about = {"dtype": DTYPES[as_written[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = about
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        if tensors[name].numel():
            flat = tensors[name].detach().to("cpu", as_written[name]).contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the file that ``write_tensors`` would write."""
    digest = hashlib.sha256()
    for part in serialized(tensors):
        digest.update(part)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; see ``serialized``.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    write_parts(path, serialized(tensors))


def head_of(checkpoint: Checkpoint) -> Classifier | None:
    """The checkpoint's classifier, if nothing is wrong with it."""
    head = checkpoint.classifier
    return head if head and not head.problem else None


def written_family(checkpoint: Checkpoint) -> Family:
    """The family that a model came as, or one that has its classifier and can say all of its shape.

    Raises:
        WeightsError: there is none.
    """
    own, head = checkpoint.origin.family, head_of(checkpoint)
    wanted = [own] if not head or head.names(own) else [DISTILBERT, own]
    for family in (*wanted, FAMILIES["bert"], *FAMILIES.values()):
        if family.expresses(checkpoint.encoder):
            return family
    raise WeightsError("no config.json of a known family says all of the encoder's shape")


def config_fields(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """The content of config.json."""
    same = family is checkpoint.origin.family
    outdated = set(OUTDATED) - ({"auto_map"} if family.remote else set())
    came = {name: value for name, value in checkpoint.origin.config.items() if same and name not in outdated}
    fields = {"pad_token_id": family.defaults.get("pad_token_id", 0), **came}
    fields |= family.write_config(checkpoint.config, came)
    older = {name: value for name, value in fields.items() if name not in NEWER}
    if family.read_config(older) != family.read_config(fields):
        log.warning("transformers 4 does not read %s, without which this model has other vectors; transformers 5 does",
                    " and ".join(sorted(NEWER & fields.keys())))  # fmt: skip
    head = head_of(checkpoint)
    if head and head.names(family):
        labels = head.labels or tuple(f"LABEL_{i}" for i in range(head.outputs))
        fields |= label_fields(labels)
        name = f"{family.classes}ForTokenClassification"
        if head.kind != "tokens":
            fields |= {"problem_type": head.problem_type} if not head.activation else scored(head.activation)
            fields |= family.head.written(head.kind, head.pooling)
            name = f"{family.classes}ForSequenceClassification"
    else:
        name = f"{family.classes}Model"
    return {**fields, "architectures": [name], "model_type": family.model_type}


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """What config.json says of a head's outputs."""
    return {"id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)}}  # fmt: skip


def scored(activation: str) -> dict[str, Any]:
    """What a cross-encoder's config.json says of its scores, under the names of sentence-transformers 4 and before."""
    path = f"torch.nn.modules.{'linear' if activation == 'identity' else 'activation'}.{activation.title()}"
    return {"sentence_transformers": {"activation_fn": path}, "sbert_ce_default_activation_function": path}


def write_transformer(checkpoint: Checkpoint, folder: Path, family: Family) -> None:
    """config.json, model.safetensors and the tokenizer; a model with a classifier gets the prefix that its class wants.

    Pooler and language-model heads are not written, since they are not loaded.
    """
    fields = config_fields(checkpoint, family)
    types = checkpoint.origin.types
    if family.token_types and types is not None:
        fields["type_vocab_size"] = max(fields["type_vocab_size"], len(types))
    tensors = family.unfold(checkpoint.encoder.state_dict(), checkpoint.config, fields, types)
    head = head_of(checkpoint)
    if head and (names := head.names(family, family.prefix)):
        tensors = {f"{family.prefix}{name}": tensor for name, tensor in tensors.items()}
        tensors |= {names[name]: tensor for name, tensor in head.tensors.items()}
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", fields)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_options(checkpoint, family))


def tokenizer_options(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """The content of tokenizer_config.json: what the tokenizer came with, and what others have to know of it."""
    came = dict(checkpoint.origin.tokenizer)
    kind = KINDS.get(came.get("tokenizer_class", ""))
    standard = {f"{role}_token": token for role, token in kind.special.items()} if kind else {}
    if not kind:  # without a padding token others cannot put texts together
        roles = ("pad",) if came else ("unk", "sep", "pad", "cls", "mask")
        texts = [(role, text) for role in roles for text in (f"<{role}>", f"[{role.upper()}]")]
        standard = {f"{role}_token": text for role, text in texts if checkpoint.tokenizer.token_to_id(text) is not None}
    tokens = {name: text_of(token) for name, token in {**standard, **came}.items() if is_token(name, token)}
    settings = {name: value for name, value in came.items() if name not in (*tokens, *TOKENIZER_OUTDATED)}
    if extra := came.get("extra_special_tokens"):  # transformers 4 takes an object under this name, or fails
        settings["extra_special_tokens" if isinstance(extra, dict) else "additional_special_tokens"] = extra
    blank = (state(checkpoint.tokenizer.pre_tokenizer) or {}).get("add_prefix_space")
    if blank is not None and blank != came.get("add_prefix_space", False):  # transformers 4 follows what stands here
        settings["add_prefix_space"] = blank
    takes = "token_type_ids" in family.inputs
    apart = family.token_types and (checkpoint.origin.types is not None or checkpoint.config.segments > 1)
    told = checkpoint.segments and (takes or apart) if came else takes
    held = {name: text for name, text in tokens.items() if checkpoint.tokenizer.token_to_id(text) is not None}
    return {
        **settings,
        **held,
        "tokenizer_class": came["tokenizer_class"] if kind else "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.max_length,
        **({"truncation_side": "left"} if checkpoint.truncate_left else {}),
        "model_input_names": ["input_ids", *["token_type_ids"] * bool(told), "attention_mask"],
    }


def write_modules(checkpoint: Checkpoint, folder: Path) -> None:
    """What sentence-transformers reads beside the transformer: pooling, dense layers, normalization, prompts."""
    kinds = ["Transformer", "Pooling", *(type(part).__name__ for part in checkpoint.after)]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{MODULES}.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": checkpoint.max_length, "do_lower_case": checkpoint.lowercase},
    )
    switches = {switch: mode in checkpoint.pooling for switch, mode in POOLING_SWITCHES.items()}
    ordered = tuple(mode for mode in POOLING_SWITCHES.values() if mode in checkpoint.pooling)
    pooling: dict[str, Any] = {"word_embedding_dimension": checkpoint.config.dim, **switches}
    if ordered != checkpoint.pooling:  # the switches know one order only
        names = ["mean_sqrt_len_tokens" if mode == "mean_sqrt_len" else mode for mode in checkpoint.pooling]
        pooling = {"embedding_dimension": checkpoint.config.dim, "pooling_mode": names}
    write_json(folder / paths[1] / "config.json", pooling)
    for part, path in zip(checkpoint.after, paths[2:], strict=True):
        (folder / path).mkdir()
        if isinstance(part, Dense):
            write_dense(part, folder / path)
        elif isinstance(part, LayerNorm):
            write_json(folder / path / "config.json", {"dimension": part.norm.weight.shape[0]})
            write_tensors(folder / path / "model.safetensors", part.state_dict())
    cut = {"truncate_dim": checkpoint.truncate_dim} if checkpoint.truncate_dim else {}
    write_json(
        folder / "config_sentence_transformers.json",
        {
            **prompt_fields(checkpoint.prompts, checkpoint.default_prompt),
            "similarity_fn_name": checkpoint.similarity_fn_name,
            **cut,
        },
    )


def prompt_fields(prompts: Mapping[str, str], default: str) -> dict[str, Any]:
    """The prompts by name, and which is the default. One that has no name yet is called "default"."""
    named = {text: name for name, text in prompts.items()}
    if default and default not in named:
        named[default] = "default" if "default" not in prompts else "default text"
        prompts = {**prompts, named[default]: default}
    return {"prompts": prompts, "default_prompt_name": named[default] if default else None}


def write_dense(part: Dense, folder: Path) -> None:
    activation = type(part.activation).__name__
    package = "linear" if activation == "Identity" else "activation"
    fields = {
        "in_features": part.linear.in_features,
        "out_features": part.linear.out_features,
        "bias": part.linear.bias is not None,
        "activation_function": f"torch.nn.modules.{package}.{activation}",
    }
    write_json(folder / "config.json", fields)
    write_tensors(folder / "model.safetensors", part.state_dict())


def save(checkpoint: Checkpoint, folder: Path, model_type: str | None = None) -> None:
    """Write a model folder that is at once transformers', sentence-transformers' and ours.

    ``model_type`` is the family to write; by default the one that the model came as.

    Raises:
        WeightsError: the family has no such encoder; the folder is not empty or cannot be written; nothing is left
            under its name then.
    """

    folder = Path(folder)
    family = FAMILIES[model_type] if model_type else written_family(checkpoint)
    if not family.expresses(checkpoint.encoder):
        kind = type(checkpoint.encoder).__name__
        raise WeightsError(f"a {kind} cannot be saved as {family.model_type}: its config.json cannot say this shape")
    with atomic_write(folder, WeightsError, folder=True) as partial:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WeightsError(f"{folder} exists and is not empty; choose another name, or delete it first")
        write_transformer(checkpoint, partial, family)
        write_modules(checkpoint, partial)
        if checkpoint.tasks:
            write_json(partial / TASKS, checkpoint.tasks)
            write_tensors(partial / BRANCHES, checkpoint.branches)
        (classes,) = json.loads((partial / "config.json").read_text(encoding="utf-8"))["architectures"]
        page = card(checkpoint, public_name(folder), classes, results_of(folder, checkpoint.tasks))
        (partial / README).write_text(page, encoding="utf-8")
