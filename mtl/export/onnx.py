"""From a model to a folder with its ONNX graphs, as the hub, transformers.js, fastembed and onnxruntime know them.

    out/config.json tokenizer.json modules.json model.safetensors ...   what ``save`` writes
    out/onnx/model.onnx               in float32, and compared with the model's own values before it is there
    out/onnx/model_quantized.onnx     with weights in int8

Inputs: ``input_ids``, ``attention_mask``, and between them ``token_type_ids`` where the family's tokenizer gives them,
(texts, length) int64. Outputs: ``last_hidden_state`` (texts, length, dim), ``sentence_embedding`` (texts, dimensions),
and ``logits`` (texts, outputs), or of a tagger (texts, length, outputs); of several heads ``logits_<task>``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mtl.checkpoints.card import README, public_name
from mtl.checkpoints.fetch import fetch
from mtl.checkpoints.files import inside
from mtl.checkpoints.publish import LICENSE, page
from mtl.checkpoints.save import label_fields, write_json
from mtl.disk import atomic_write, writing
from mtl.encode.precision import calibration_texts
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import InputError, MtlError, WeightsError, extra, one_line, shown
from mtl.export.twin import Padded
from mtl.model.packing import PackedBatch
from mtl.tasks.classifier import PROBLEMS
from mtl.tasks.multitask import MultiTaskModel, with_heads

log = logging.getLogger("mtl")

OPSET = 18
TEXTS, AT_ONCE = 200, 8  # that are compared, and how many of them stand side by side
LONGEST = 1024  # tokens of a text that is compared
BAR = 1e-5  # of the largest value of an output, or of 1 where that is less
FAR = 0.9  # the cosine below which a quantized graph's embedding is said to be far from the model's own
ONE_FILE = 1_800_000_000  # bytes of weights that fit in a graph's own file, which protobuf keeps below 2 GiB

Outputs = Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with the model's own values of ``texts`` texts.

    difference: The largest of any output, over the output's largest value where that is above 1.
    cosine: The least, between an embedding of the quantized graph and the model's own.
    """

    graph: Path
    quantized: Path
    outputs: tuple[str, ...]
    texts: int
    difference: float
    cosine: float


def export_onnx(model: str | Path, output: str | Path, task: str | None = None) -> Exported:
    """Write a model, by name, hub id or folder, with its ONNX graphs to a new folder, which appears when all is right.

    With ``task`` no other head is in it, so that its output is called ``logits``, as pipelines expect.

    Raises:
        InputError: the extra is not installed, or there is no such task.
        ConfigError, WeightsError: the model cannot be loaded or has no padded form; or the graph gives other values
            than the model; or the folder is not empty or cannot be written.
    """
    folder, output = fetch(str(model)), Path(output)
    check_installed()
    with writing(output, WeightsError):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise WeightsError(f"{output} exists and is not empty; choose another name, or delete it first")
    loaded = chosen(with_heads(str(model)), task)
    with atomic_write(output, WeightsError, folder=True) as partial:
        loaded.save(partial)
        add_labels(loaded, partial / "config.json")
        (partial / README).write_text(page(partial, public_name(output)), encoding="utf-8")
        for name in (LICENSE, README) if task is None else (LICENSE,):
            if (there := inside(folder, name)).is_file():
                shutil.copyfile(there, partial / name)
        (partial / "onnx").mkdir()
        graph, quantized = partial / "onnx" / "model.onnx", partial / "onnx" / "model_quantized.onnx"
        rows = sample_rows(loaded)
        expected = [own_outputs(loaded, batch) for batch in batches(rows)]
        with in_a_line(output):
            names = write_graph(loaded, graph)
            difference = compared(expected, graph, names, rows)
            write_quantized(graph, quantized)
            cosine = least_cosine(expected, quantized, rows)
        say_apart(partial)
    if not cosine >= FAR:  # or it is none
        said = f"has cosines down to {cosine:.2f} with the model's own embeddings, below {FAR}"
        log.warning("onnx/%s %s: measure it before you use it, or delete it", quantized.name, said)
    places = output / "onnx" / graph.name, output / "onnx" / quantized.name
    return Exported(*places, tuple(names), len(rows), difference, cosine)


@contextmanager
def in_a_line(output: Path) -> Iterator[None]:
    """One line for whatever the exporter, the quantizer and the runtime raise, as of a file that the disk cut short."""
    try:
        yield
    except (MtlError, OSError):
        raise
    except Exception as error:
        given = f"{type(error).__name__}: {one_line(error)}"
        raise WeightsError(f"{output} cannot be written ({given})") from error


def check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"an export to ONNX needs {error.name}; {extra('onnx')}") from None


def chosen(model: SentenceEncoder | MultiTaskModel, task: str | None) -> SentenceEncoder | MultiTaskModel:
    """The model with no head but one task's, where one is named."""
    if task is None:
        return model
    heads = [*model.branches] if isinstance(model, MultiTaskModel) else []
    if not isinstance(model, MultiTaskModel) or task not in heads:
        raise InputError(
            f"task is {shown(task)}; expected a task that has a head: {', '.join(heads) or 'there is none'}"
        )
    alone = MultiTaskModel(model.embedder, [model.tasks[task]])
    alone.branches[task] = model.branches[task]
    return alone.eval()


def add_labels(model: SentenceEncoder | MultiTaskModel, config: Path) -> None:
    """Say in config.json what the columns of ``logits`` are, whatever the head: pipelines look there."""
    if not isinstance(model, MultiTaskModel) or len(model.branches) != 1:
        return
    (name,) = model.branches
    task = model.tasks[name]
    fields = json.loads(config.read_text(encoding="utf-8")) | label_fields(task.handler.output_names or ("LABEL_0",))
    if problem := PROBLEMS.get(task.kind):
        fields["problem_type"] = problem
    write_json(config, fields)


def parts(model: SentenceEncoder | MultiTaskModel) -> tuple[SentenceEncoder, Mapping[str, nn.Module]]:
    """The embedder, and the branches by the names of their outputs."""
    if isinstance(model, SentenceEncoder):
        return model, {}
    return model.embedder, {"logits" if len(model.branches) == 1 else f"logits_{name}": branch
                            for name, branch in model.branches.items()}  # fmt: skip


def twin_of(model: SentenceEncoder | MultiTaskModel) -> Padded:
    """The padded form, in eval mode."""
    embedder, _ = parts(model)
    branches, units = ((dict(model.branches.items()), model.in_units) if isinstance(model, MultiTaskModel)
                       else ({}, lambda name, x: x))  # fmt: skip
    return Padded(embedder.encoder, embedder.pooling, embedder.after, embedder.dim, branches, units).eval()


def write_graph(model: SentenceEncoder | MultiTaskModel, path: Path) -> list[str]:
    """Write the graph in float32; gives the names of its outputs."""
    embedder, heads = parts(model)
    told = "token_type_ids" in embedder.origin.family.inputs or embedder.encoder.config.segments > 1
    types = ("token_type_ids",) if told else ()
    inputs = ["input_ids", *types, "attention_mask"]
    outputs = ["last_hidden_state", "sentence_embedding", *heads]
    example = torch.zeros(2, 7, dtype=torch.int64), *(torch.ones(2, 7, dtype=torch.int64) for _ in inputs[1:])
    most = embedder.encoder.config.max_position_embeddings
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1, max=most)}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            twin_of(model), example, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True,
            dynamic_shapes={"ids": axes, "rest": (axes,) * len(inputs[1:])}, verbose=False,
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph.all_nodes():  # the lines that made it, with the paths of this machine
        node.metadata_props.clear()
    program.model.metadata_props["mtl"] = json.dumps(about(model), ensure_ascii=False)
    write(program.model, path)
    return outputs


def write(model: Any, path: Path) -> None:
    """Write a graph, of onnx_ir; its weights stand in a file of their own, called as on the hub, where protobuf cannot
    hold them."""
    import onnx_ir

    size = sum(each.const_value.nbytes for each in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=f"{path.name}_data" if size > ONE_FILE else None)


def about(model: SentenceEncoder | MultiTaskModel) -> dict[str, Any]:
    """What a graph says of itself, under "mtl" in its metadata. Logits are at a task's temperature already."""
    embedder, heads = parts(model)
    tasks = [model.tasks[name] for name in model.branches] if isinstance(model, MultiTaskModel) else []
    return {
        "max_length": embedder.tokenizer.max_length,
        "pooling": list(embedder.pooling.modes),
        "prompts": embedder.prompts,
        "default_prompt": embedder.default_prompt,
        "outputs": {
            output: {
                "task": task.name, "kind": task.kind, **task.handler.about(), "labels": [*task.handler.output_names]
            }
            for output, task in zip(heads, tasks, strict=True)
        },
    }  # fmt: skip


def write_quantized(graph: Path, path: Path) -> None:
    """Write a graph with weights in int8, whose sums no processor saturates: weights take 7 bits."""
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = graph.with_name(f"{graph.name}_data").exists()
    with quiet():
        quantize_dynamic(graph, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                         use_external_data_format=large)  # fmt: skip
    if large:  # a quarter as large, and maybe no more
        write(onnx_ir.external_data.load_to_model(onnx_ir.load(path)), path)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def say_apart(folder: Path) -> None:
    """Say in config.json which graphs' weights stand in a file of their own: transformers.js looks there."""
    if apart := {path.name.removesuffix("_data"): 1 for path in (folder / "onnx").glob("*_data")}:
        config = folder / "config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, fields | {"transformers.js_config": {"use_external_data_format": apart}})


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's and the quantizer's remarks on what nobody here can change.

    The quantizer's are those of the root logger, which would set up logging for the whole process if it had no handler.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    usual = logging.lastResort if not root.handlers else None
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        root.addFilter(not_of_the_quantizer)
        if usual:
            root.addHandler(usual)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(not_of_the_quantizer)
        if usual:
            root.removeHandler(usual)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def not_of_the_quantizer(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in Path(record.pathname).parts


def sample_rows(model: SentenceEncoder | MultiTaskModel) -> list[list[int]]:
    """The ids of 200 texts of one word up to as many tokens as the model takes, long ones beside short ones."""
    embedder, _ = parts(model)
    sentences = calibration_texts()
    texts = [" ".join(sentences), "a"]
    for i in range(TEXTS - len(texts)):
        words = " ".join(sentences[(i + j) % len(sentences)] for j in range(1 + i % 3)).split()
        texts.append(" ".join(words[: 1 + (7 * i) % len(words)]))
    limit = min(embedder.tokenizer.max_length, LONGEST)
    rows = embedder.tokenizer(texts, "truncate", limit).rows
    if isinstance(model, MultiTaskModel) and model.pair_heads:
        rows += embedder.tokenizer.pairs([*zip(texts[::9], texts[1::9], strict=False)], "truncate", limit).rows
    return [row for row in rows if row]


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, (rows, length) each; padding stands behind."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def batches(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    return (list(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE))


def graph_outputs(path: Path, rows: Sequence[list[int]]) -> Iterator[Outputs]:
    """What onnxruntime makes of rows, a batch at a time; of tokens, those that are no padding, one after another."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in batches(rows):
        ids, mask = padded(batch)
        second = ids < 0  # of the second segment; see mtl/model/packing.py
        types = second.astype(np.int64)
        given = {"input_ids": np.where(second, ~ids, ids), "attention_mask": mask, "token_type_ids": types}
        found = session.run(names, {each.name: given[each.name] for each in session.get_inputs()})
        yield {name: x[mask == 1] if x.ndim == 3 else x for name, x in zip(names, found, strict=True)}


def own_outputs(model: SentenceEncoder | MultiTaskModel, rows: Sequence[list[int]]) -> Outputs:
    """The same, by what ``encode`` and ``predict`` compute with."""
    embedder, heads = parts(model)
    batch = PackedBatch.pack(rows)
    with torch.inference_mode():
        vectors, logits = model.program()(batch) if isinstance(model, MultiTaskModel) else (model.program()(batch), {})
        named = dict(zip(heads, logits.values(), strict=True))
        hidden = embedder.encoder(batch).float()
    found = {"last_hidden_state": hidden, "sentence_embedding": vectors[:, : embedder.dim], **named}
    return {name: x.numpy() for name, x in found.items()}


def compared(expected: Sequence[Outputs], path: Path, names: Sequence[str], rows: Sequence[list[int]]) -> float:
    """The largest difference between the graph's outputs and the model's, which are ``expected`` of each batch of rows.

    Raises:
        WeightsError: it is over the bar.
    """
    worst = dict.fromkeys(names, 0.0)
    for own, found in zip(expected, graph_outputs(path, rows), strict=True):
        for name in names:
            difference = np.abs(found[name] - own[name]).max() / max(1.0, np.abs(own[name]).max())
            worst[name] = float(np.maximum(worst[name], difference))  # NaN stays
    if wrong := [name for name in names if not worst[name] <= BAR]:
        raise WeightsError(
            f"the exported graph's {wrong[0]} differs by {worst[wrong[0]]:.1e} from the model's own, more than {BAR}; "
            f"nothing was written"
        )
    return max(worst.values())


def least_cosine(expected: Sequence[Outputs], path: Path, rows: Sequence[list[int]]) -> float:
    """The least cosine between an embedding of a graph and the model's own."""
    least = 1.0
    for own, found in zip(expected, graph_outputs(path, rows), strict=True):
        a, b = (x["sentence_embedding"].astype(float) for x in (found, own))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        least = float(np.minimum(least, ((a * b).sum(axis=1) / np.maximum(lengths, 1e-30)).min()))
    return least
