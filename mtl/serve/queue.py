"""Rows of token ids from many requests, computed in turns by one thread that lives as long as the server.

A turn takes rows first come first served, up to a budget of tokens, so that nobody waits for the whole of what another
has asked for: a request that has had two turns' tokens goes on at the end of the line. A row that several wait for is
computed once, and one that nobody waits for any more is passed over.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mtl.errors import MtlError

Row = tuple[int, ...]
Compute = Callable[[str, Sequence[Row]], Sequence[Any]]  # a program's name and rows: for each a value, or an exception

VISIT = 2  # turns that a request may have before others go on
FAILURES = 3  # turns that fail one after another until the worker counts as broken

log = logging.getLogger("mtl")


class Overloaded(MtlError):
    """There is no room for more tokens; ``retry_after`` is in how many seconds there may be."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Broken(MtlError):
    """The worker is dead or stuck, and nothing is computed."""


@dataclasses.dataclass(eq=False)
class Item:
    """A row to be computed by a program, and the places of the tickets that wait for it."""

    program: str
    row: Row
    waiting: list[tuple[Ticket, int]] = dataclasses.field(default_factory=list)
    taken: bool = False


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request's rows: ``future`` gives their values in order; ``started`` and ``ended`` are monotonic seconds."""

    future: asyncio.Future[list[Any]]
    values: list[Any]
    items: deque[Item] = dataclasses.field(default_factory=deque)
    left: int = 0
    visit: int = 0  # tokens that it has had since it came to the head of the line
    queued: float = dataclasses.field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None


class Queue:
    """``compute`` runs in a thread of its own, ``turn_tokens`` at a time; at most ``most_tokens`` may wait.

    ``submit`` and ``drop`` are called in the event loop that waits for the tickets. ``on_turn`` is told each turn's
    rows and tokens, in that thread.
    """

    def __init__(
        self,
        compute: Compute,
        turn_tokens: int,
        most_tokens: int,
        stuck_seconds: float = 60,
        on_turn: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> None:
        self.compute, self.turn_tokens, self.most_tokens = compute, turn_tokens, most_tokens
        self.stuck_seconds, self.on_turn = stuck_seconds, on_turn
        self.changed = threading.Condition()
        self.line: deque[Ticket] = deque()
        self.pending: dict[tuple[str, Row], Item] = {}
        self.tokens = 0  # of rows that wait, or are being computed
        self.rate = 1000.0  # tokens a second, as lately seen
        self.busy_since: float | None = None
        self.failures = 0
        self.closing = self.dead = False
        self.thread = threading.Thread(target=self.work, name="mtl-serve", daemon=True)
        self.thread.start()

    @property
    def halted(self) -> str | None:
        """Why nothing is computed, in words; None while something is."""
        since = self.busy_since
        if self.dead:
            return "the worker is dead"
        if since is not None and time.monotonic() - since > self.stuck_seconds:
            return f"the worker has been at one turn for more than {self.stuck_seconds:.0f} seconds"
        return None

    @property
    def fault(self) -> str | None:
        """What is wrong with the worker, in words; None while it works."""
        failing = f"the last {self.failures} turns failed" if self.failures >= FAILURES else None
        return self.halted or failing

    @property
    def retry_after(self) -> int:
        """Seconds until half of what waits is done, 1 to 60."""
        return max(1, min(60, round(self.tokens / 2 / self.rate)))

    def check_room(self, tokens: int) -> None:
        """Raise an Overloaded where so many tokens more cannot wait."""
        if self.tokens + tokens > self.most_tokens:
            given = f"{self.tokens} tokens wait and {tokens} more came"
            raise Overloaded(f"{given}; the limit is {self.most_tokens}", self.retry_after)

    def submit(self, program: str, rows: Sequence[Row]) -> Ticket:
        """A ticket for the values that a program gives of rows.

        Raises:
            Overloaded: too many tokens wait.
            Broken: the worker is dead, or stuck.
        """
        ticket = Ticket(asyncio.get_running_loop().create_future(), [None] * len(rows), left=len(rows))
        distinct = dict.fromkeys(rows)
        with self.changed:
            if self.halted:
                raise Broken(self.halted)
            self.check_room(sum(len(row) for row in distinct if (program, row) not in self.pending))
            for row in distinct:
                if (program, row) not in self.pending:
                    self.pending[program, row] = Item(program, row)
                    self.tokens += len(row)
                ticket.items.append(self.pending[program, row])
            for place, row in enumerate(rows):
                self.pending[program, row].waiting.append((ticket, place))
            self.line.append(ticket)
            self.changed.notify()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget a ticket whose client has left, and the rows that only it waited for."""
        with self.changed:
            for item in ticket.items:
                item.waiting = [(other, place) for other, place in item.waiting if other is not ticket]
                if not item.waiting and not item.taken:
                    self.forget(item)
            ticket.items.clear()
            ticket.future.cancel()

    def forget(self, item: Item) -> None:
        """Have an item no longer count; the lock is held."""
        if self.pending.get((item.program, item.row)) is item:
            del self.pending[item.program, item.row]
            self.tokens -= len(item.row)

    def take(self) -> list[Item]:
        """The rows of the next turn; the lock is held."""
        turn: list[Item] = []
        room, now = self.turn_tokens, time.monotonic()
        while self.line:
            ticket = self.line[0]
            while ticket.items and (ticket.items[0].taken or not ticket.items[0].waiting):
                ticket.items.popleft()
            if not ticket.items:
                self.line.popleft()
                continue
            item = ticket.items[0]
            if ticket.visit >= VISIT * self.turn_tokens:
                ticket.visit = 0
                self.line.rotate(-1)
                continue
            if turn and len(item.row) > room:
                break
            ticket.items.popleft()
            item.taken = True
            turn.append(item)
            room -= len(item.row)
            ticket.visit += len(item.row)
            ticket.started = ticket.started or now
        return turn

    def work(self) -> None:
        """The worker: turn after turn, until the queue is closed and empty."""
        try:
            while True:
                with self.changed:
                    while not (turn := self.take()):
                        if self.closing:
                            return
                        self.changed.wait()
                self.busy_since = start = time.monotonic()
                tokens = sum(len(item.row) for item in turn)
                self.on_turn(len(turn), tokens)
                for program in dict.fromkeys(item.program for item in turn):
                    self.serve(program, [item for item in turn if item.program == program])
                self.busy_since = None
                self.rate += 0.1 * (tokens / max(1e-6, time.monotonic() - start) - self.rate)
        except BaseException:
            log.exception("the worker of the server has died")
        finally:
            self.give_up()

    def serve(self, program: str, items: Sequence[Item]) -> None:
        """Compute and deliver rows; note whether all of them failed, and none of that was foreseen."""
        values = self.values(program, items)
        failed = all(isinstance(value, Exception) and not isinstance(value, MtlError) for value in values)
        self.failures = self.failures + 1 if failed else 0
        self.deliver(items, values)

    def values(self, program: str, items: Sequence[Item]) -> Sequence[Any]:
        """What a program gives of rows; where that fails, of each alone, so that only the one that fails does."""
        try:
            return self.compute(program, [item.row for item in items])
        except Exception as error:
            if len(items) > 1:
                return [value for item in items for value in self.values(program, [item])]
            log.exception("a row of %d tokens cannot be computed", len(items[0].row))
            return [error]

    def deliver(self, items: Sequence[Item], values: Sequence[Any]) -> None:
        """Hand values to the tickets that wait for them."""
        done: list[Ticket] = []
        now = time.monotonic()
        with self.changed:
            for item, value in zip(items, values, strict=True):
                self.forget(item)
                for ticket, place in item.waiting:
                    ticket.values[place] = value
                    ticket.started = ticket.started or now  # another's row was computed for it
                    ticket.left -= 1
                    if not ticket.left:
                        ticket.ended = now
                        done.append(ticket)
        tell(done)

    def give_up(self) -> None:
        """Tell everybody who waits that nothing comes any more."""
        with self.changed:
            self.dead = True  # before anybody hears of it; the thread lives on for a moment
            waiting = {ticket for item in self.pending.values() for ticket, _ in item.waiting}
            for ticket in waiting:
                ticket.values = [Broken("the worker is dead")]
            self.pending.clear()
            self.line.clear()
            self.tokens = 0
        tell(list(waiting))

    def close(self) -> None:
        """Have the worker end when all that waits is done."""
        with self.changed:
            self.closing = True
            self.changed.notify()


def tell(tickets: Sequence[Ticket]) -> None:
    """Have tickets settled in their event loop, unless that has ended."""
    with suppress(RuntimeError):
        if tickets:
            tickets[0].future.get_loop().call_soon_threadsafe(settle, tickets)


def settle(tickets: Sequence[Ticket]) -> None:
    """Give tickets' values, or the first exception among them, to those who wait; in their event loop."""
    for ticket in tickets:
        if ticket.future.done():
            continue
        error = next((value for value in ticket.values if isinstance(value, Exception)), None)
        if error is None:
            ticket.future.set_result(ticket.values)
        else:
            ticket.future.set_exception(error)
