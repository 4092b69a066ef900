"""Files of answers: what is there is gone on with only where it is what it would be now."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl.errors import InputError
from mtl.tasks.answer_files import resume_answers, write_answers

ROWS = [(text, {"text": text}) for text in "abc"]


def resumed(path: Path, model: str, interrupted_after: int | None = None) -> tuple[int, bool]:
    def answer(rows: Iterable[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
        for number, (_, fields) in enumerate(rows):
            if number == interrupted_after:
                raise KeyboardInterrupt
            yield {**fields, "tasks": {"topic": {"label": model, "scores": {}}}}

    return resume_answers(path, iter(ROWS), answer, {"model": model})


def labelled(model: str) -> list[dict[str, Any]]:
    return [{**fields, "tasks": {"topic": {"label": model, "scores": {}}}} for _, fields in ROWS]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_output_that_another_model_took_the_place_of(tmp_path: Path, suffix: str) -> None:
    """What was said of the older output says nothing of the one that replaced it."""
    path = tmp_path / f"o{suffix}"
    assert resumed(path, "first") == (3, False)
    assert resumed(path, "first") == (3, True)
    assert write_answers(path, labelled("second"), overwrite=True) == 3
    with pytest.raises(InputError, match="is missing or damaged; --overwrite starts anew"):
        resumed(path, "first")
    assert path.read_text().count("second") == 3


def test_an_interrupted_run_is_not_thrown_away_unasked(tmp_path: Path) -> None:
    path, partial = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        resumed(path, "first", interrupted_after=2)
    before = partial.read_bytes()
    with pytest.raises(InputError, match="--resume goes on with them, --overwrite starts anew"):
        write_answers(path, labelled("second"))
    assert (partial.read_bytes(), path.exists()) == (before, False)
    assert resumed(path, "first") == (3, False)
    partial.write_bytes(before)  # as where a process is killed before it has removed it
    assert resumed(path, "first") == (3, True)
    assert not partial.exists()
    partial.write_bytes(before)
    assert write_answers(path, labelled("second"), overwrite=True) == 3
    assert {x.name for x in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("going_on", [False, True])
def test_infinite_numbers(tmp_path: Path, going_on: bool, caplog: pytest.LogCaptureFixture) -> None:
    """They stay in .csv; JSON has none, which a line says."""
    rows = [(text, {"text": text, "x": value}) for text, value in (("a", float("inf")), ("b", -float("inf")))]

    def answer(given: Iterable[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
        for _, fields in given:
            yield {**fields, "tasks": {"topic": {"label": "l", "scores": {}}}}

    def stopping(given: Iterable[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
        yield next(answer(given))
        raise KeyboardInterrupt

    for suffix, expected in ((".csv", "a,inf,l\nb,-inf,l\n"), (".jsonl", '"x": null')):
        path = tmp_path / f"o{suffix}"
        if going_on:
            with pytest.raises(KeyboardInterrupt):
                resume_answers(path, iter(rows), stopping, {})
            resume_answers(path, iter(rows), answer, {})
        else:
            write_answers(path, answer(rows))
        assert expected in path.read_text()
    assert f"{tmp_path / 'o.jsonl'}: numbers that are infinite become null" in caplog.text
    assert "o.csv" not in caplog.text
    assert "JSON:" not in caplog.text  # what is said is of the file


def test_an_infinite_number_that_changed_is_another_input(tmp_path: Path) -> None:
    def going_on(value: float) -> tuple[int, bool]:
        rows = [("a", {"text": "a", "x": value})]
        return resume_answers(tmp_path / "o.csv", iter(rows), lambda given: ({**f, "tasks": {}} for _, f in given), {})

    assert going_on(float("inf")) == (1, False)
    assert going_on(float("inf")) == (1, True)
    with pytest.raises(InputError, match="the input differs from what"):
        going_on(-float("inf"))
