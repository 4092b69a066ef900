"""docs/api.md is what the docstrings say."""

import importlib.util
from pathlib import Path

import mtl

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_that_of_the_docstrings() -> None:
    """`python docs/make_api.py` writes it."""
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert make_api.page() == page
    for name in mtl.__all__:
        assert name.startswith("__") or f"`mtl.{name}" in page
