"""Two tasks on one trunk, described and trained from Python.

python examples/two_tasks.py runs/two-tasks
"""

import sys
from pathlib import Path

import mtl
from mtl import Recipe, TaskSpec, Training

DATA = Path(mtl.__file__).parent / "recipes" / "demo"  # files of {"text": ..., "label": ...} that come with the package


def task(name: str, *labels: str, **options: object) -> TaskSpec:
    files = {split: str(DATA / f"{name}-{split}.jsonl") for split in ("train", "dev", "test")}
    return TaskSpec(name, labels, **files, **options)


def main(folder: str, epochs: int = 2) -> None:
    recipe = Recipe(
        model="all-MiniLM-L6-v2",
        tasks=(
            task("topic", "food", "travel", "technology", freeze=4),  # leaves the embeddings and 4 blocks as they are
            task("sentiment", "negative", "positive", pooling=("attention",), weight=2.0),
        ),
        training=Training(epochs=epochs, batch_size=8, accumulate=2, head_learning_rate=2e-3),
    )
    model = mtl.train(recipe, folder)
    found = model.predict(["The soup was a delight.", "The last train was cancelled again."])
    for name in model.tasks:
        print(name, found.labels[name])
    print("vectors", found.embeddings.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
