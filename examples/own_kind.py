"""A kind, a metric and a hook of your own: labels in order, of which it counts by how many an answer is off.

python examples/own_kind.py runs/stars
"""

import sys
from pathlib import Path

import torch

import mtl


@mtl.register_kind
class Ordinal(mtl.SingleLabel):
    name = "ordinal"

    def loss(self, outputs: torch.Tensor, stars: torch.Tensor) -> tuple[torch.Tensor, float]:
        off = (torch.arange(outputs.shape[1], device=stars.device) - stars[:, None]).abs()
        surely_not = (1 - outputs.softmax(dim=1)).clamp_min(1e-6).log()
        return -(off * surely_not).sum(), len(stars)  # the sum, and of how many rows it is


mtl.register_metric("off", lambda outputs, stars: (outputs.argmax(1) - stars).abs().float().mean(), "ordinal")
rows = Path(__file__).resolve().with_name("stars.jsonl")
task = mtl.TaskSpec("stars", ("bad", "fair", "good"), kind="ordinal", train=rows, dev=rows, freeze="encoder")
recipe = mtl.Recipe("all-MiniLM-L6-v2", [task], mtl.Training(epochs=4, batch_size=6, head_learning_rate=3e-2))
model = mtl.train(recipe, sys.argv[1], on_epoch=lambda _, record: print(record["epoch"], record["dev"]["stars"]))
print(model.predict(["Rude staff, cold food.", "Decent for one night.", "Wonderful food, kind people."]).labels)
