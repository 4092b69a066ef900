"""docs/api.md and CONTRIBUTING.md's tree are what the docstrings say; `python docs/generate.py` writes them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import mtl


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).parents[1] / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_docstrings(generate: ModuleType) -> None:
    page = generate.PAGE.read_text(encoding="utf-8")
    assert generate.page() == page
    for name in mtl.__all__:
        assert name.startswith("__") or f"`mtl.{name}" in page


def test_the_tree_is_that_of_the_modules(generate: ModuleType) -> None:
    assert generate.contributing() == generate.CONTRIBUTING.read_text(encoding="utf-8")
    assert " encoder.py " in generate.tree()
    assert all(generate.purpose(path) for path in (generate.ROOT / "mtl").rglob("*.py")), "a module says what it is for"


def test_nobody_is_sent_to_a_package_of_our_name(generate: ModuleType) -> None:
    """On the package index, ``mtl`` is another project's."""
    pages = [generate.ROOT / "README.md", generate.ROOT / "CHANGELOG.md", *(generate.ROOT / "docs").glob("*.md")]
    for path in [*pages, *(generate.ROOT / "mtl").rglob("*.py")]:
        assert not re.search(r"pip install (-\S+ )*['\"]?mtl\b", path.read_text(encoding="utf-8")), path
