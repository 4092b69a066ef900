"""The page at /, in a real browser: by keyboard, light and dark, with heads, with a key."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl import SentenceEncoder
from mtl.serve.app import read_keys

from .conftest import Client

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGE = Path(__file__).parents[2] / "mtl" / "serve" / "page.html"


def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    reply = client.get("/")
    assert reply.status == 200
    assert reply.body == PAGE.read_bytes()
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", reply.body.decode())
    assert b"innerHTML" not in reply.body


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here; `apt-get install chromium`, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; an error in its script fails the test."""
    errors: list[str] = []
    contexts = []

    def start(client: Client, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(client.url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not errors


def says(page: Any, pattern: str, place: str = "#said") -> None:
    """Wait until a place of the page says something."""
    from playwright.sync_api import expect

    expect(page.locator(place)).to_have_text(re.compile(pattern), timeout=10_000)


@pytest.mark.slow
def test_texts_are_compared_by_keyboard(
    client: Client, encoder: SentenceEncoder, open_page: Callable[..., Any]
) -> None:
    page = open_page(client)
    says(page, "tiny", "#name")
    assert "12 dimensions · 16 tokens a text" in page.inner_text("#facts")
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "texts":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("a b c\nd e\na <b>&amp;</b>")
    page.keyboard.press("Control+Enter")
    says(page, "^3 texts in ")
    vectors = encoder.encode(["a b c", "d e", "a <b>&amp;</b>"], normalize=True)
    cells = [float(cell) for cell in page.locator("#cosines tbody td").all_inner_texts()]
    assert cells == pytest.approx((vectors @ vectors.T).flatten().tolist(), abs=6e-4)
    assert page.locator("#cosines tbody th").all_inner_texts()[2].endswith("a <b>&amp;</b>")
    curls = page.locator("#curls pre").all_inner_texts()
    assert [line.split()[1] for line in curls] == [f"{client.url}/embed", f"{client.url}/v1/embeddings"]
    assert not page.locator("#heads").is_visible()
    page.fill("#texts", " ".join("abcdefghijklmnopqrst"))
    page.press("#texts", "Control+Enter")
    says(page, "1 cut")


@pytest.mark.slow
def test_heads_and_colours(headed: Client, open_page: Callable[..., Any], tmp_path: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = open_page(headed, color_scheme=scheme)
        says(page, "heads", "#name")
        page.click("#run")
        says(page, "3 texts")
        assert page.locator("#answers article").count() == 3
        names = page.locator("#answers article:first-child h4").all_inner_texts()
        assert sorted(names) == ["score", "tags", "topic"]
        assert page.locator("#answers article:first-child .label.chosen").count() >= 1
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.click("#theme")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert grounds[0] == grounds[3] != grounds[1] == grounds[2]


@pytest.mark.slow
def test_spans_are_marked_by_characters(client: Client, open_page: Callable[..., Any]) -> None:
    page = open_page(client)
    spans = [{"start": 2, "end": 4, "label": "X"}, {"start": 3, "end": 5, "label": "overlaps"}]
    made = page.evaluate("spans => marked('🙂 né 🙂', spans).outerHTML", spans)
    assert made == "<span>🙂 <mark>né<small>X</small></mark> 🙂</span>"


@pytest.mark.slow
def test_a_key_is_asked_for(serving: Callable[..., Client], open_page: Callable[..., Any]) -> None:
    page = open_page(serving(keys=read_keys("secret")))
    page.wait_for_selector("#key-form", state="visible")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    says(page, "tiny", "#name")
    says(page, "^3 texts")
    assert "Bearer KEY" in page.inner_text("#curls")


@pytest.mark.slow
def test_what_went_wrong_is_said(client: Client, open_page: Callable[..., Any]) -> None:
    page = open_page(client)
    page.fill("#texts", "\n".join("a" * 45))
    page.click("#run")
    says(page, "batch size 45 > maximum")
    page.fill("#texts", "   ")
    page.click("#run")
    says(page, "Type a text first")
