"""Pictures of vectors: what is drawn where, and what has no picture."""

import dataclasses
from pathlib import Path

import matplotlib
import pytest
import torch
from training.test_loop import SETS, A, build, examples
from training.test_pairs import NEGATIVES, SIMILAR, dataset

from mtl.checkpoints.load import Checkpoint
from mtl.errors import InputError, TrainingError
from mtl.tasks.pictures import flat
from mtl.training import plots

matplotlib.use("Agg")


def test_the_two_directions_that_differ_most() -> None:
    """Points on a plane in 5 dimensions keep their distances; two points lie on a line."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(5, 2, generator=generator)).Q
    points = torch.randn(20, 2, generator=generator) * torch.tensor([3.0, 1.0])
    found = flat(points @ plane.T + 7)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(points, points).double(), atol=1e-5, rtol=0)
    assert found[:, 0].var() > found[:, 1].var()
    torch.testing.assert_close(
        flat(torch.tensor([[0.0], [4.0]])).abs(), torch.tensor([[2.0, 0.0]] * 2).double(), atol=1e-9, rtol=0
    )


def test_a_panel_for_each_task_that_has_one(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores beside cosines; labels in colours; anchors and positives; and nothing for sets of labels."""
    tasks = (SIMILAR, A, dataclasses.replace(NEGATIVES, name="told"), SETS)
    model = build(checkpoint, tasks).eval()
    data = dataset(*tasks[:3])["dev"] | {"tags": examples(SETS, 9, 3)}
    drawn: list[tuple] = []
    for kind, function in (("single_label", "map"), ("contrastive", "map"), ("similarity", "cosines")):
        monkeypatch.setattr(f"mtl.tasks.kinds.{kind}.draw_{function}", lambda axes, *given: drawn.append(given))
    assert plots.plot_vectors(model, data, tmp_path / "all.png")
    alike, topic, told = drawn
    assert (alike[0], alike[1].shape) == ("alike", (9, 2, 12))
    assert torch.equal(alike[2], data["alike"].targets)
    assert (topic[0], topic[1].shape, topic[3]) == ("topic", (9, 12), ("x", "y", "z"))
    assert torch.equal(topic[2], data["topic"].targets)
    assert (told[0], told[1].shape, told[3]) == ("told", (18, 12), ("a", "b"))
    assert told[2].tolist() == [0, 1] * 9
    assert not plots.plot_vectors(model, {"tags": data["tags"]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_many_rows_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "POINTS", 4)
    data = dataset(SIMILAR, size=9)["train"]["alike"]
    found = plots.some(data)
    assert found.rows == [row for i in (0, 3, 6) for row in data.rows[2 * i : 2 * i + 2]]
    assert torch.equal(found.targets, data.targets[[0, 3, 6]])


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--plot is map.jpeg; expected a name that ends in .png, .svg, .pdf"):
        plots.check_picture(Path("map.jpeg"))
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(
        TrainingError, match=r"a picture needs matplotlib; in the clone of mtl: pip install -e '\.\[train\]'"
    ):
        plots.check_picture(Path("map.png"))
