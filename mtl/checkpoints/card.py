"""A model's page on the hub, README.md: metadata by which it is found, then what it is, its use, metrics and recipe.

What a training run knows of its model is in ``results.json`` beside the model's folder; see ``write_results``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from mtl.checkpoints.fetch import HUB_ID, data_address, find, local_folder
from mtl.disk import atomic_write
from mtl.display import version_of
from mtl.errors import CheckpointError, WeightsError, one_line

if TYPE_CHECKING:
    from mtl.checkpoints.load import Checkpoint

README, RESULTS = "README.md", "results.json"
PLACEHOLDER = "OWNER/NAME"  # of a model that is not on the hub yet
# The hub's name of what tasks of a kind do; the last part's are those that train the embeddings themselves
HUB_TASKS = {
    **dict.fromkeys(("single-label", "multi-label", "regression"), "text-classification"),
    "relevance": "text-ranking",
    "tokens": "token-classification",
    **dict.fromkeys(("similarity", "few-shot", "contrastive", "distillation"), "sentence-similarity"),
}
PACKAGES = ("mtl", "torch", "tokenizers", "safetensors")
TEXTS = '["The train was late.", "The view was worth it."]'
PAIRS = '[("How was the trip?", "The train was late."), ("How was the trip?", "It rains.")]'
PAIR = '{"text": "How was the trip?", "text_pair": "The train was late."}'
USES = {
    "MultiTaskModel": f"""from mtl import MultiTaskModel

model = MultiTaskModel.from_pretrained("{PLACEHOLDER}")
print(model.predict({TEXTS}).labels)""",
    "SentenceTransformer": f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{PLACEHOLDER}")
print(model.encode({TEXTS}).shape)""",
    "CrossEncoder": f"""from sentence_transformers import CrossEncoder

model = CrossEncoder("{PLACEHOLDER}")
print(model.predict({TEXTS}))""",
    "text-classification": f"""from transformers import pipeline

print(pipeline("text-classification", "{PLACEHOLDER}")({TEXTS}))""",
    "token-classification": f"""from transformers import pipeline

print(pipeline("token-classification", "{PLACEHOLDER}")({TEXTS}))""",
}
# Of a model that reads pairs alone; its vectors are of texts
IN_PAIRS = {"MultiTaskModel": PAIRS, "CrossEncoder": PAIRS, "text-classification": PAIR}


def versions() -> dict[str, str]:
    """Of Python, and of the packages on which a model's numbers depend."""
    return {"python": python_version(), **{name: version_of(name) for name in PACKAGES}}


def base_of(model: str) -> dict[str, str] | None:
    """The hub's name and revision of the model that a recipe starts from; nothing of one that is a local folder."""
    if local_folder(model) is not None:
        return None
    name, _, revision = model.partition("@")
    if entry := find(name):
        return {"name": entry.hub, "revision": revision or entry.revision}
    return {"name": name, **({"revision": revision} if revision else {})} if re.fullmatch(HUB_ID, name) else None


def public_data(source: object) -> dict[str, str] | None:
    """What may be said of a split's data: files' names, and their dataset on the hub; no folder of this machine."""
    if source is None:
        return None
    if isinstance(source, float):
        return {"file": f"{source:g} of train"}
    if isinstance(source, (list, tuple)):
        found = [said for each in source if (said := public_data(each))]
        dataset = {"dataset": found[0]["dataset"]} if len({said.get("dataset") for said in found}) == 1 else {}
        return {**(dataset if "dataset" in found[0] else {}), "file": ", ".join(said["file"] for said in found)}
    if not str(source).startswith("hf://"):
        return {"file": Path(str(source)).name}
    name, _, file = data_address(str(source))
    return {"dataset": name, "file": file or name}


def write_results(
    folder: Path, recipe: Mapping[str, Any], rows: Mapping[str, Mapping[str, int]], metrics: Mapping[str, Any]
) -> None:
    """Write what a run came to: its recipe, the rows and metrics of each split by task, and versions.

    Raises:
        CheckpointError: it cannot be written.
    """
    tasks = {name: {**task, "teacher": Path(task.get("teacher") or "").name} for name, task in recipe["task"].items()}
    for task in tasks.values():
        task |= {split: public_data(task.get(split)) for split in ("train", "dev", "test")}
    content = {
        "base": base_of(str(recipe["model"])),
        "training": recipe["training"],
        "tasks": tasks,
        "rows": rows,
        "metrics": metrics,
        "versions": versions(),
    }
    with atomic_write(folder / RESULTS, CheckpointError) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def results_of(folder: Path, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the run that ends in a model's folder came to; nothing where there is none, or it had other tasks.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder.resolve().parent / RESULTS
    if folder.resolve().name != "model" or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"training": dict, "tasks": dict, "rows": dict, "metrics": dict, "versions": dict}
        if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise ValueError("a part of it has another type")
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({one_line(error)}); train with --resume to have it written") from None
    return found if [*found["tasks"]] == [task["name"] for task in tasks] else None


def public_name(folder: Path) -> str:
    """What a model is called by its folder: the last part that says something."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and (cached := folder.parents[1].name).startswith("models--"):  # the hub's
        return cached.rpartition("--")[2]
    return next(part for part in reversed(folder.parts) if part != "model")


def with_tasks(checkpoint: Checkpoint) -> Checkpoint:
    """A model whose classifier, where it has no tasks of ours, is its task, as MultiTaskModel takes it."""
    head = checkpoint.classifier
    if checkpoint.tasks or not head or head.problem:
        return checkpoint
    kind = head.problem_type.removesuffix("_classification").replace("_", "-")
    kind = "tokens" if head.kind == "tokens" else "relevance" if head.activation else kind
    name = "tokens" if kind == "tokens" else "classification"
    labels = head.labels if head.outputs > 1 or kind == "multi-label" else ()
    task = {"name": name, "kind": kind, "labels": labels, "joint": kind == "relevance"}
    tensors = {f"{name}.{tensor}": x for tensor, x in head.tensors.items()}
    return dataclasses.replace(checkpoint, tasks=(task,), branches=tensors)


def tasks_in(checkpoint: Checkpoint) -> list[str]:
    """The hub's names of what the tasks do that have a branch of their own; each once."""
    own = {name.partition(".")[0] for name in checkpoint.branches}
    found = (HUB_TASKS.get(task.get("kind", "single-label")) for task in checkpoint.tasks if task["name"] in own)
    return list(dict.fromkeys(name for name in found if name))


def reader(architecture: str, heads: Sequence[str]) -> str:
    """Which of ``USES`` others read a model's head by; "" where they know nothing of it."""
    if architecture.endswith("ForTokenClassification"):
        return "token-classification"
    if architecture.endswith("ForSequenceClassification"):
        return "CrossEncoder" if [*heads] == ["text-ranking"] else "text-classification"
    return ""


def metadata(checkpoint: Checkpoint, name: str, reader: str, results: Mapping[str, Any] | None) -> str:
    """The page's head, in YAML."""
    from huggingface_hub import ModelCardData

    heads = tasks_in(checkpoint)
    several = ["multi-task"] if len(checkpoint.tasks) > 1 else []
    tags = ["sentence-transformers", "mtl", "sentence-similarity", "feature-extraction", *heads, *several]
    known: dict[str, Any] = {}
    if results:
        sources = [task[split] for task in results["tasks"].values() for split in ("train", "dev", "test")]
        found = list(evaluations(results))
        base = (results.get("base") or {}).get("name")
        entry = find(base) if base else None
        known = {
            "base_model": base,
            "license": entry.licence.lower() if entry else None,
            "datasets": sorted({source["dataset"] for source in sources if source and "dataset" in source}) or None,
            "metrics": sorted({result.metric_type for result in found}) or None,
            "eval_results": found or None,
        }
    data = ModelCardData(
        library_name="transformers" if reader.endswith("-classification") else "sentence-transformers",
        pipeline_tag=(heads or ["sentence-similarity"])[0], tags=list(dict.fromkeys(tags)), model_name=name, **known,
    )  # fmt: skip
    return data.to_yaml()


def evaluations(results: Mapping[str, Any]) -> Iterator[Any]:
    """Every metric of every split as the hub's model-index has it."""
    from huggingface_hub import EvalResult

    for split, by_task in results["metrics"].items():
        for name, values in by_task.items():
            task = results["tasks"][name]
            data = task[split] or {"file": name}
            for metric, value in values.items():
                if not math.isfinite(value):  # which is no number to the hub
                    continue
                yield EvalResult(
                    task_type=HUB_TASKS.get(task["kind"], "other"), task_name=name, dataset_name=data["file"],
                    dataset_type=data.get("dataset", name), dataset_split=split, metric_type=metric, metric_value=value,
                )  # fmt: skip


def cell(value: object) -> str:
    """A value for a cell of a Markdown table."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return " ".join(re.sub(r"([|\\`<>*_\[\]])", r"\\\1", text).split())


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as a Markdown table; the first row is the header."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def card(checkpoint: Checkpoint, name: str, architecture: str, results: Mapping[str, Any] | None = None) -> str:
    """The page of a model of this name; ``architecture`` is transformers' class for it.

    ``PLACEHOLDER`` stands where the model's name on the hub will, once it is there.
    """
    name = " ".join(name.encode(errors="replace").decode().split())  # a folder may be called what no file can hold
    checkpoint = with_tasks(checkpoint)
    read_by = reader(architecture, tasks_in(checkpoint))
    base = (results or {}).get("base")
    origin = f" It was trained from [{base['name']}](https://huggingface.co/{base['name']})." if base else ""
    title = re.sub(r"([<>\[\]`*_\\])", r"\\\1", name)
    parts = [
        f"---\n{metadata(checkpoint, name, read_by, results)}\n---",
        f"# {title}",
        f"{said(checkpoint)}{origin}",
        "## Use",
        *usage(checkpoint, read_by),
    ]
    if checkpoint.tasks:
        rows = [(task["name"], task.get("kind", ""), ", ".join(map(str, task.get("labels", ()))) or "none")
                for task in checkpoint.tasks]  # fmt: skip
        parts += ["## Tasks", markdown([("task", "kind", "labels"), *rows])]
    if results:
        parts += [*scores(results), *training(results)]
    used = (results or {}).get("versions") or versions()
    parts += ["## Versions", ", ".join(f"{package} {number}" for package, number in used.items())]
    return "\n\n".join(parts) + "\n"


def said(checkpoint: Checkpoint) -> str:
    """What the model is, in a sentence."""
    config, heads = checkpoint.config, len(checkpoint.tasks)
    also = f" and {heads} trained {'task' if heads == 1 else 'tasks'}" if heads else ""
    pooling = " and ".join(checkpoint.pooling)
    shape = f"{config.n_layers} blocks, hidden states of {config.dim} dimensions, {pooling} pooling"
    return f"A sentence transformer ({shape}, {checkpoint.max_length} tokens a text){also}."


def usage(checkpoint: Checkpoint, reader: str) -> list[str]:
    """How it is used with the libraries that load it."""
    heads = {name.partition(".")[0] for name in checkpoint.branches}
    of_texts = any(task["name"] in heads and task.get("joint") is not True for task in checkpoint.tasks)
    kept = filter(None, ("MultiTaskModel" if checkpoint.branches else "", "SentenceTransformer", reader))
    given = {name: TEXTS if of_texts else IN_PAIRS.get(name, TEXTS) for name in kept}
    return [f"```python\n{USES[name].replace(TEXTS, texts)}\n```" for name, texts in given.items()]


def scores(results: Mapping[str, Any]) -> Iterator[str]:
    """A table of metrics for each split."""
    for split, by_task in results["metrics"].items():
        names = list(dict.fromkeys(metric for values in by_task.values() for metric in values))
        rows = [[task, *(values.get(metric, "") for metric in names)] for task, values in by_task.items()]
        yield f"## Metrics on {split}"
        yield markdown([["task", *names], *rows])


def training(results: Mapping[str, Any]) -> Iterator[str]:
    """The data of each task, and the settings of the recipe."""
    splits = ("train", "dev", "test")
    rows = []
    for name, task in results["tasks"].items():
        counts = [f"{source.get('dataset', '')} {source['file']}, {results['rows'].get(split, {}).get(name, 0):,} rows"
                  if (source := task[split]) else "" for split in splits]  # fmt: skip
        rows.append([name, *counts])
    yield "## Training"
    yield markdown([["task", *splits], *rows])
    base = results.get("base") or {}
    start = {
        "model": f"{base['name']}@{base['revision']}" if "revision" in base else base.get("name", "a local folder")
    }
    settings = {**start, **results["training"]}
    yield "```json\n" + json.dumps(settings, indent=1, ensure_ascii=False) + "\n```"
