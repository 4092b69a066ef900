"""A kind, a metric and a hook of your own: labels in order, learned by questions of "more than that?".

python examples/own_kind.py runs/stars
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad

import mtl
from mtl.tasks.kinds.single_label import SingleLabel

STARS = ("bad", "fair", "good")
ROWS = {"Never again.": 0, "Cold soup.": 0, "It was fine.": 1, "As expected.": 1, "A joy!": 2, "Superb.": 2}


@mtl.register_kind
class Ordinal(SingleLabel):
    """Output k is the logit of being above label k - 1; the first one has no such question."""

    name = "ordinal"

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        above = targets[:, None] >= torch.arange(1, outputs.shape[1], device=targets.device)
        of_rows = binary_cross_entropy_with_logits(outputs[:, 1:], above.float(), reduction="none").mean(dim=1)
        return of_rows.sum(), len(of_rows)

    def in_units(self, outputs: Tensor) -> Tensor:
        above = pad(outputs[:, 1:].sigmoid().cummin(dim=1).values, (1, 0), value=1.0)
        return (above - pad(above[:, 1:], (0, 1))).clamp_min(1e-6).log()  # of each label: above the last, not above it


def main(folder: str) -> None:
    mtl.register_metric("off", lambda logits, stars: (logits.argmax(1) - stars).abs().float().mean(), "ordinal")
    data = Path(folder).with_suffix(".jsonl").resolve()
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps({"text": text, "label": STARS[k]}) + "\n" for text, k in ROWS.items()))
    task = mtl.TaskSpec("stars", STARS, kind="ordinal", train=data, dev=data, freeze="encoder")
    recipe = mtl.Recipe("all-MiniLM-L6-v2", [task], mtl.Training(epochs=8, batch_size=3, head_learning_rate=3e-2))
    model = mtl.train(recipe, folder, on_epoch=lambda model, record: print(record["epoch"], record["dev"]["stars"]))
    print(model.predict([*ROWS]).labels["stars"])


if __name__ == "__main__":
    main(*sys.argv[1:])
