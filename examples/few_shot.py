"""A classifier from 8 examples a class: pairs of them train the trunk, then a head is fitted.

python examples/few_shot.py runs/few-shot
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import mtl
from mtl import Recipe, TaskSpec

DATA = Path(mtl.__file__).parent / "recipes" / "demo"
LABELS = ("food", "travel", "technology")


def first_of_each_label(path: Path, number: int) -> list[dict[str, str]]:
    rows = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["label"]].append(row)
    return [row for label in LABELS for row in rows[label][:number]]


def main(folder: str) -> None:
    examples = Path(folder).with_suffix(".jsonl")
    examples.parent.mkdir(parents=True, exist_ok=True)
    rows = first_of_each_label(DATA / "topic-train.jsonl", 8)
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    topic = TaskSpec("topic", kind="few-shot", train=examples.resolve(), test=DATA / "topic-test.jsonl")
    recipe = Recipe("all-MiniLM-L6-v2", [topic])  # an epoch, 16 pairs a step, at a rate of 2e-5
    model = mtl.train(recipe, folder)
    print(model.predict(["Simmer the beans for an hour."]).labels["topic"])


if __name__ == "__main__":
    main(*sys.argv[1:])
