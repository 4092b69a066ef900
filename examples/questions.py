"""Fit a model to 300 questions and the answers of one house, and search the answers with questions of your own.

python examples/questions.py runs/questions "May I bring my cat?" "My saw is blunt."

What it prints before and after training is how well 40 questions that it never saw find their answers.
"""

import json
import sys
from pathlib import Path

import mtl
from mtl import Recipe, Reporter, TaskSpec, Training

ROWS, HELD_OUT = (Path(__file__).resolve().with_name(f"questions{part}.jsonl") for part in ("", "-held-out"))


class Told(Reporter):
    """Training prints nothing by itself; who wants to see something of it hands in a reporter."""

    def measured(self, run, title, metrics, confusions) -> None:
        print(f"{title}: ", ", ".join(f"{name} {value:.4f}" for name, value in metrics["answers"].items()))


def main(folder: str, *queries: str, epochs: int = 4) -> None:
    pairs = TaskSpec(
        "answers", kind="contrastive", text_field=("question", "answer"), train=str(ROWS), test=str(HELD_OUT)
    )
    # The answers of a batch's other questions are what each question learns to tell its own answer from
    recipe = Recipe("all-MiniLM-L6-v2", (pairs,), Training(epochs=epochs, batch_size=30, learning_rate=5e-5))
    model = mtl.train(recipe, folder, report=Told())
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    answers = sorted({row["answer"] for row in rows})
    scores, places = model.embedder.search(list(queries), answers, k=3)  # both (queries, 3), best first
    for query, row, found in zip(queries, scores, places, strict=True):
        print(query)
        for score, place in zip(row, found, strict=True):
            print(f"  {score:.3f}  {answers[place]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
