"""The README is true: its Python runs, its figures are measured, and its tree names what is there."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.readme import render
from mtl.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[0], {})
    assert "0.66595" in capsys.readouterr().out
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(blocks("toml")[0])
    recipe = read_recipe(tmp_path / "my.toml")
    assert [task.kind for task in recipe.tasks] == ["single-label", "regression"]


@pytest.mark.parametrize("folder", ["mtl", "weights"])
def test_the_tree_names_every_file(folder: str) -> None:
    tree = README.split("## What is where")[1]
    for path in (ROOT / folder).glob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"^      {path.name}\b", tree, re.MULTILINE), path


def test_every_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`|^    make ([a-z-]+)", README, re.MULTILINE)):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_the_figures_are_those_of_the_results() -> None:
    """`python -m benchmarks.readme` writes them."""
    found = re.search(r"<!-- speed:begin -->\n(.*)<!-- speed:end -->", README, re.DOTALL)
    assert found
    assert found[1] == render()
