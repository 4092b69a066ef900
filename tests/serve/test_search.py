"""POST /search: the answers of Index.search, from the newest state, whatever the rows hold."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl import Index, SentenceEncoder

from .conftest import Client, letters, randomized
from .test_page import browser, open_page, says  # noqa: F401 (fixtures)

ROWS = [{"text": "a b"}, {"text": "f", "large": 10**30, "odd": "\ud800"}, {"text": "a b"}, {"text": "c <b>d</b>"}]


@pytest.fixture
def index(encoder: SentenceEncoder, tmp_path: Path) -> Index:
    made = Index.create(tmp_path / "idx", encoder)
    made.add(ROWS)
    return made


def test_search_is_that_of_the_index(serving: Callable[..., Client], encoder: SentenceEncoder, index: Index) -> None:
    client = serving(index=Index.open(index.folder, encoder))
    queries = ["a b", "f", "c d"]
    reply = client.post("/search", {"query": queries, "k": 3})
    assert reply.status == 200, reply.body
    assert reply.json == {"results": [list(map(dataclasses.asdict, hits)) for hits in index.search(queries, 3)]}
    one = client.post("/search", {"query": "f"}).json["results"]
    assert [hit["id"] for hit in one] == [hit.id for hit in index.search("f", 5)]
    assert [hit["row"] for hit in one if hit["id"] == 1] == [ROWS[1]]
    assert client.get("/info").json["mtl"]["index"] == {"rows": 4, "form": "fp32"}
    index.delete([1])
    index.add(["f g"])
    found = client.post("/search", {"query": "f", "k": 9}).json["results"]
    assert sorted(hit["id"] for hit in found) == [0, 2, 3, 4]


def test_an_index_that_is_made_anew_meanwhile(
    serving: Callable[..., Client], encoder: SentenceEncoder, index: Index, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As many steps were needed for it: what it is tells that it is another. One of another model is refused."""
    client = serving(index=Index.open(index.folder, encoder))
    other = randomized(SentenceEncoder.from_checkpoint(letters(tmp_path)), seed=1)
    for model in (encoder, other):
        shutil.rmtree(index.folder)
        made = Index.create(index.folder, model)
        made.add(["c d", "e f", "g"])
        assert made.state.number == index.state.number
        reply = client.post("/search", {"query": "e f", "k": 1})
        if model is encoder:
            assert [hit["row"] for hit in reply.json["results"]] == [{"text": "e f"}]
    assert reply.status == 424
    assert "was made with another model: encoder" in caplog.text
    assert client.get("/info").json["mtl"]["index"]["rows"] == 3


def test_long_searches_hold_nobody_up(
    serving: Callable[..., Client], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither texts that are tokenized in a thread, since they are many."""
    go, entered, search = threading.Event(), threading.Semaphore(0), Index.search

    def slowly(*arguments: Any) -> Any:
        entered.release()
        assert go.wait(20)
        return search(*arguments)

    monkeypatch.setattr(Index, "search", slowly)
    client = serving(index=index)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/search", {"query": text}) for text in "ab"]
        try:
            assert all(entered.acquire(timeout=10) for _ in asked)
            assert client.post("/embed", {"inputs": ["a b c"] * 1000}).status == 200
        finally:
            go.set()
        assert [each.result().status for each in asked] == [200, 200]


def test_an_index_that_is_damaged_meanwhile(
    serving: Callable[..., Client], index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    """Is not the client's to mend, who learns no path."""
    client = serving(index=index)
    (index.folder / "index.json").write_text("{")
    reply = client.post("/search", {"query": "f"})
    assert (reply.status, reply.json["error"]["type"]) == (424, "server_error")
    assert str(index.folder).encode() not in reply.body
    assert f"{index.folder}" in caplog.text


def test_the_prompt_is_that_of_queries(
    serving: Callable[..., Client], encoder: SentenceEncoder, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "query" in encoder.prompts
    client = serving(index=index)
    score = client.post("/search", {"query": "f", "k": 1}).json["results"][0]["score"]
    with_prompt, without = (index.search(encoder.encode(text), 1)[0].score for text in ("q f", "f"))
    assert np.float32(score) == np.float32(with_prompt) != np.float32(without)


def test_what_is_refused(client: Client, serving: Callable[..., Client], index: Index) -> None:
    reply = client.post("/search", {"query": "a"})
    assert (reply.status, "start it with --index" in reply.json["error"]["message"]) == (424, True)
    searching = serving(index=index)
    bodies: list[Any] = [{}, {"query": 1}, {"query": [1]}, {"query": ""}, {"query": []}, {"query": "a", "k": 0},
                         {"query": "a", "k": 10**9}, {"query": "a", "k": "5"}]  # fmt: skip
    for body in bodies:
        assert searching.post("/search", body).status == 400, body
    many = searching.post("/search", {"query": ["a"] * 33, "k": 1000})  # of rows of any length
    assert (many.status, "33000 rows are asked for; expected at most 32768" in many.json["error"]["message"]) == (
        413,
        True,
    )


@pytest.mark.slow
def test_the_page_searches(
    serving: Callable[..., Client],
    client: Client,
    index: Index,
    open_page: Callable[..., Any],  # noqa: F811
) -> None:
    page = open_page(serving(index=index))
    says(page, "4 rows", "#rows")
    page.fill("#query", "c d")
    page.press("#query", "Enter")
    says(page, "^4 found in ", "#found-said")
    assert "c <b>d</b>" in page.inner_text("#found")
    assert "/search" in page.inner_text("#curls")
    page = open_page(client)
    says(page, "tiny", "#name")
    assert not page.locator("#find").is_visible()
