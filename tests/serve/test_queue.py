"""The queue: turns by tokens, who goes first, what is computed once, and what happens when the worker fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mtl.errors import MtlError
from mtl.serve.queue import VISIT, Broken, Overloaded, Queue, Row, Ticket


class Worker:
    """Doubles a row's first id, when it is let; ``turns`` are the rows that it was given."""

    def __init__(self) -> None:
        self.turns: list[list[Row]] = []
        self.go = threading.Event()
        self.entered = threading.Event()
        self.bad: Callable[[Row], None] = lambda row: None

    def __call__(self, program: str, rows: Sequence[Row]) -> list[Any]:
        self.turns.append(list(rows))
        self.entered.set()
        assert self.go.wait(10)
        for row in rows:
            self.bad(row)
        return [(program, 2 * row[0]) for row in rows]


def rows(*firsts: int, length: int = 1) -> list[Row]:
    return [(first,) * length for first in firsts]


async def held(queue: Queue, worker: Worker) -> Ticket:
    """A first row that keeps the worker busy, so that what follows has to wait."""
    ticket = queue.submit("p", rows(0))
    await asyncio.to_thread(worker.entered.wait, 10)
    return ticket


def run(test: Callable[[Queue, Worker], Any], turn: int = 4, most: int = 100, **options: Any) -> Worker:
    worker = Worker()
    queue = Queue(worker, turn, most, **options)
    try:
        asyncio.run(asyncio.wait_for(test(queue, worker), 10))
    finally:
        worker.go.set()
        queue.close()
        queue.thread.join(10)
    assert not queue.thread.is_alive()
    assert queue.tokens == 0
    assert not queue.pending
    return worker


def test_values_come_in_order_and_equal_rows_are_computed_once() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        await held(queue, worker)
        first, second = queue.submit("p", rows(3, 1, 3)), queue.submit("p", rows(1, 2))
        other = queue.submit("r", rows(1))
        assert queue.tokens == 5  # of 0, 3, 1, 2 and the other program's 1
        worker.go.set()
        assert await first.future == [("p", 6), ("p", 2), ("p", 6)]
        assert await second.future == [("p", 2), ("p", 4)]
        assert await other.future == [("r", 2)]
        assert (first.ended or 0) >= (first.started or 0) >= first.queued

    assert run(test).turns == [rows(0), rows(3, 1, 2), rows(1)]


def test_a_row_that_is_being_computed_serves_who_comes_late() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        first = await held(queue, worker)
        late = queue.submit("p", rows(0))
        worker.go.set()
        assert await first.future == await late.future

    assert run(test).turns == [rows(0)]


def test_first_come_first_served_until_a_request_has_had_its_turns() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        await held(queue, worker)
        large = queue.submit("p", rows(*range(1, 21)))
        small = queue.submit("p", rows(50))
        worker.go.set()
        await asyncio.gather(small.future, large.future)
        assert (small.ended or 0) < (large.ended or 0)

    turns = run(test).turns[1:]
    assert VISIT == 2
    assert turns == [rows(1, 2, 3, 4), rows(5, 6, 7, 8), rows(50, 9, 10, 11), *(turns[3:])]
    assert [row for turn in turns[3:] for row in turn] == rows(*range(12, 21))


def test_a_long_row_waits_for_no_room_that_never_comes() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        await held(queue, worker)
        tickets = [queue.submit("p", rows(1)), queue.submit("p", rows(2, length=9)), queue.submit("p", rows(3))]
        worker.go.set()
        await asyncio.gather(*(ticket.future for ticket in tickets))

    assert run(test).turns[1:] == [rows(1), rows(2, length=9), rows(3)]


def test_what_nobody_waits_for_is_passed_over() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        await held(queue, worker)
        gone, stays = queue.submit("p", rows(1, 2)), queue.submit("p", rows(2, 3))
        queue.drop(gone)
        assert queue.tokens == 3
        queue.drop(gone)
        assert queue.tokens == 3
        worker.go.set()
        assert await stays.future == [("p", 4), ("p", 6)]

    assert run(test).turns[1:] == [rows(2, 3)]


def test_too_many_tokens_are_refused_before_they_wait() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        await held(queue, worker)
        queue.submit("p", rows(*range(1, 10)))
        with pytest.raises(Overloaded, match="10 tokens wait and 1 more came; the limit is 10") as refused:
            queue.submit("p", rows(77))
        assert 1 <= refused.value.retry_after <= 60
        queue.submit("p", rows(5))  # waits already
        assert queue.tokens == 10

    run(test, most=10)


def test_one_row_that_fails_does_not_fail_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        def bad(row: Row) -> None:
            if row == (2,):
                raise RuntimeError("no such row")

        worker.bad = bad
        await held(queue, worker)
        good, failing = queue.submit("p", rows(1, 3)), queue.submit("p", rows(2))
        worker.go.set()
        assert await good.future == [("p", 2), ("p", 6)]
        with pytest.raises(RuntimeError, match="no such row"):
            await failing.future
        assert queue.fault is None
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await queue.submit("p", rows(2)).future
        assert queue.fault == "the last 3 turns failed"
        await queue.submit("p", rows(9)).future
        assert queue.fault is None

    run(test)


def test_a_dead_worker_answers_everybody(caplog: pytest.LogCaptureFixture) -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        def bad(row: Row) -> None:
            raise SystemExit

        def slowly() -> None:
            give_up()
            assert ended.wait(10)

        worker.bad = bad
        give_up, ended = queue.give_up, threading.Event()
        queue.give_up = slowly
        first = await held(queue, worker)
        waits = queue.submit("p", rows(1))
        worker.go.set()
        for ticket in (first, waits):
            with pytest.raises(Broken, match="dead"):
                await ticket.future
        assert queue.fault == "the worker is dead"  # from the first word of it, though its thread has not ended
        with pytest.raises(Broken, match="dead"):
            queue.submit("p", rows(2))
        ended.set()

    run(test)


def test_a_stuck_worker_is_seen_and_nothing_more_is_taken() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        ticket = await held(queue, worker)
        while queue.fault is None:
            await asyncio.sleep(0.005)
        assert "more than 0 seconds" in queue.fault
        with pytest.raises(Broken, match="one turn"):
            queue.submit("p", rows(2))
        worker.go.set()
        assert await ticket.future == [("p", 0)]

    run(test, stuck_seconds=0.02)


def test_foreseen_failures_are_no_fault_of_the_worker() -> None:
    async def test(queue: Queue, worker: Worker) -> None:
        worker.go.set()
        queue.compute = lambda program, rows: [MtlError("not finite") for _ in rows]
        for i in range(5):
            with pytest.raises(MtlError, match="not finite"):
                await queue.submit("p", rows(i)).future
        assert queue.fault is None

    run(test)
