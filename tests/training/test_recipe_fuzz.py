"""Recipes, damaged at random: read, or refused in one clear line."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import damaged_toml

from mtl.errors import RecipeError
from mtl.training.recipe import read_recipe

RECIPE = """\
model = "tiny"
[training]
epochs = 2
batch_size = 4
learning_rate = 5e-5
warmup = 0.1
schedule = "linear"
sampling = "temperature"
best = "mean"
max_length = 12
seed = 1
[[task]]
name = "topic"
labels = ["x", "y"]
train = "train.jsonl"
pooling = ["mean", "cls"]
dropout = 0.1
[[task]]
name = "mood"
kind = "multi-label"
labels = ["good", "bad"]
train = "hf://datasets/a/b@main/x.csv"
head = "distilbert"
weight = 0.5
freeze = { 1 = "encoder", 2 = 1, 3 = "none" }
freeze_head = false
"""
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def read(folder: Path, content: bytes) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(content)
    line = str(path)
    try:
        recipe = read_recipe(path)
        assert all(task.outputs >= 0 and task.frozen_depth(9, 6) != -1 for task in recipe.tasks)
    except RecipeError as error:
        line = str(error)
    assert line.isprintable(), repr(line)
    assert str(path) in line
    assert len(line) < 1000


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(content=damaged_toml(RECIPE))
def test_recipes(tmp_path: Path, content: bytes) -> None:
    read(tmp_path, content)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=CHECKS)
@given(content=damaged_toml(RECIPE))
def test_recipes_thoroughly(tmp_path: Path, content: bytes) -> None:
    read(tmp_path, content)
