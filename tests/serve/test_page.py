"""The page at /, in a real browser: by keyboard, light and dark, with heads, with a key."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.serve.app import Service, read_keys
from mtl.serve.model import Served

from .conftest import Client, letters, randomized, running

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
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in re.search("script-src [^;]*", policy)[0]
    assert policy.endswith("form-action 'none'; frame-ancestors 'none'")
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
def test_no_text_is_left_out_without_a_word(serving: Callable[..., Client], open_page: Callable[..., Any]) -> None:
    page = open_page(serving())
    page.fill("#texts", "\n".join("a" * 60))
    page.focus("#run")
    page.keyboard.press("Enter")
    says(page, "^the first 50 texts of 60 in ")
    assert page.evaluate("document.activeElement.id") == "run"


@pytest.mark.slow
def test_pairs_of_texts(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    """Of a model that reads no others: texts alone are compared, and a pair over the limit is said to be cut."""
    task = TaskSpec("nli", ["no", "yes"], text_field=("one", "other"), joint=True)
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(letters(tmp_path)), [task]))
    with running(Service(Served(model, "judge"))) as client:
        page = open_page(client)
        says(page, "judge", "#name")
        page.fill("#texts", "a b\nc d")
        page.click("#run")
        says(page, "^2 texts in ")
        assert page.locator("#similar").is_visible()
        assert not page.locator("#heads").is_visible()
        page.fill("#texts", "a b c d e f g h | i j k l m n o p\na | b")
        page.click("#run")
        says(page, "^2 texts in .*; 1 cut")
        assert page.locator("#answers article").count() == 2
        assert not page.locator("#similar").is_visible()


@pytest.mark.slow
def test_what_went_wrong_is_said(client: Client, open_page: Callable[..., Any]) -> None:
    page = open_page(client)
    page.fill("#texts", "\n".join("a" * 45))
    page.click("#run")
    says(page, "batch size 45 > maximum")
    page.fill("#texts", "\n".join("a" * 60))
    page.click("#run")
    says(page, "batch size 50 > maximum")
    page.fill("#texts", "   ")
    page.click("#run")
    says(page, "Type a text first")
