"""A classifier from 8 examples a class: a new head on a trunk that stays as it is.

python examples/few_shot.py runs/few-shot
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import mtl
from mtl import Recipe, TaskSpec, Training

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
    topic = TaskSpec(
        "topic",
        LABELS,
        train=str(examples.resolve()),
        test=str(DATA / "topic-test.jsonl"),
        freeze="encoder",
        dropout=0.0,
    )
    # The trunk's vectors are computed once and remembered, so that many epochs cost little
    recipe = Recipe("all-MiniLM-L6-v2", (topic,), Training(epochs=12, batch_size=8, head_learning_rate=1e-2))
    model = mtl.train(recipe, folder)
    print(model.predict(["Simmer the beans for an hour."]).labels["topic"])


if __name__ == "__main__":
    main(*sys.argv[1:])
