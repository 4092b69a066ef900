"""From a model to a folder that transformers, sentence-transformers and ``mtl.checkpoints.load`` all read.

The inverse of ``load``. It writes the older form of each file, which old and new readers understand. The
folder appears whole or not at all: it is written under a temporary name, then renamed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from mtl.checkpoints.load import BRANCHES, POOLING_SWITCHES, TASKS, Checkpoint
from mtl.checkpoints.names import CONFIG_NAMES, to_bert
from mtl.disk import atomic_write
from mtl.errors import WeightsError
from mtl.model.config import LAYER_NORM_EPS
from mtl.model.pooling import Dense

Architecture = Literal["distilbert", "bert"]
MODULES = "sentence_transformers.models"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file as transformers marks its own. Tensors are laid out anew, so none share memory.

    Whatever a model computes in, floating-point numbers are written as float32. The umask decides the file's
    mode, which safetensors would set to its owner alone.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    written = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file({name: x.detach().cpu().contiguous() for name, x in written.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)


def config_fields(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Any]:
    """The content of config.json."""
    fields = dataclasses.asdict(checkpoint.config)
    name = "DistilBertForSequenceClassification" if checkpoint.head else "DistilBertModel"
    if architecture == "bert":
        fields = {berts: fields[ours] for berts, ours in CONFIG_NAMES.items()}
        fields |= {"type_vocab_size": 2, "layer_norm_eps": LAYER_NORM_EPS}
        name = "BertModel"
    if checkpoint.labels:
        fields["id2label"] = {str(i): label for i, label in enumerate(checkpoint.labels)}
        fields["label2id"] = {label: i for i, label in enumerate(checkpoint.labels)}
    elif checkpoint.head:  # transformers would take two outputs for granted
        outputs = len(checkpoint.head["classifier.weight"])
        fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(outputs)}
        fields |= {"problem_type": "regression"} if outputs == 1 else {}
    return {"architectures": [name], "model_type": architecture, "pad_token_id": 0, **fields}


def write_transformer(checkpoint: Checkpoint, folder: Path, architecture: Architecture = "distilbert") -> None:
    """config.json, model.safetensors and the tokenizer.

    A DistilBERT with a head gets the prefix that its class expects. As "bert" the names are BERT's, without
    the pooler, which we never load, and the token type stays folded into the positions (see ``to_bert``).
    """
    tensors = dict(checkpoint.encoder.state_dict())
    if architecture == "bert":
        tensors = to_bert(tensors, checkpoint.config.n_layers)
    elif checkpoint.head:
        tensors = {f"distilbert.{name}": tensor for name, tensor in tensors.items()} | checkpoint.head
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config_fields(checkpoint, architecture))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")
    options = {"model_max_length": checkpoint.max_length, "tokenizer_class": "PreTrainedTokenizerFast"}
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
    present = {key: token for key, token in special.items() if checkpoint.tokenizer.token_to_id(token) is not None}
    write_json(folder / "tokenizer_config.json", options | present)


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
    write_json(
        folder / "config_sentence_transformers.json",
        {
            **prompt_fields(checkpoint.prompts, checkpoint.default_prompt),
            "similarity_fn_name": checkpoint.similarity_fn_name,
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


def save(checkpoint: Checkpoint, folder: Path, architecture: Architecture = "distilbert") -> None:
    """Write a model folder that is at once transformers', sentence-transformers' and ours.

    Raises:
        WeightsError: the folder is not empty or cannot be written; nothing is left under its name then.
    """

    folder = Path(folder)
    with atomic_write(folder, WeightsError, folder=True) as partial:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WeightsError(f"{folder} exists and is not empty; choose another name, or delete it first")
        write_transformer(checkpoint, partial, architecture)
        write_modules(checkpoint, partial)
        if checkpoint.tasks:
            write_json(partial / TASKS, checkpoint.tasks)
            write_tensors(partial / BRANCHES, checkpoint.branches)
