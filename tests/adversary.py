"""Bad and extreme inputs by the hundred, through the command line and from Python: python tests/adversary.py

Each case runs in this process, or in one of its own where it may hang for good or needs closed descriptors, and ends
in one of five ways: right (or refused in one clear line), a traceback, a hang, wrong, or something lost. Right means
that it does what the case says, vectors that are finite included; lost means that a file which was there before is not
as it was. The last four must not occur. The cases themselves are in adversary_cases.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mtl.errors import MtlError

SECONDS = 60  # after which a case counts as a hang
ENDS = ("right or one clear line", "traceback", "hang", "wrong", "lost")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command, or a call, ended: ``value`` is what a call gave."""

    code: int
    stdout: str = ""
    stderr: str = ""
    value: Any = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One input. ``expect`` is "right", "refused" or "either"; ``right`` looks at what is right.

    Refusals hold ``says`` somewhere. ``kept`` must be the same afterwards, byte for byte.
    """

    name: str
    act: Callable[[], Outcome]
    expect: str = "refused"
    says: str = ""
    right: Callable[[Outcome], bool] = lambda outcome: True
    kept: tuple[Path, ...] = ()


class Hang(BaseException):
    """Raised by the alarm: nothing catches it on the way."""


@contextlib.contextmanager
def alarmed(seconds: int) -> Iterator[None]:
    def ring(*args: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: object, stdin: bytes | None = b"") -> Outcome:
    """The program in this process, which saves loading torch each time."""
    from mtl.cli import main

    out, err, before, code = io.StringIO(), io.StringIO(), sys.stdin, 0
    sys.stdin = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdin = before
    return Outcome(code, out.getvalue(), err.getvalue())


def call(function: Callable[[], Any]) -> Outcome:
    """A call from Python: one of our own errors is its one line."""
    try:
        return Outcome(0, value=function())
    except MtlError as error:
        return Outcome(1, stderr=f"error: {error}\n")


def clear(outcome: Outcome) -> bool:
    """Whether a refusal is one clear line: "error: ..." and exit code 1, or the usage and exit code 2."""
    start = {1: "error: ", 2: "Error: "}.get(outcome.code, "interrupted")
    found = [line for line in outcome.stderr.splitlines() if line.startswith(start)]
    return len(found) == 1 and len(found[0]) < 3000 and outcome.stderr.splitlines()[-1] == found[0]


def fingerprint(paths: tuple[Path, ...]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone" for path in paths]


def judge(case: Case) -> tuple[str, str]:
    """How a case ended, and what there is to say about it."""
    before = fingerprint(case.kept)
    try:
        with alarmed(SECONDS), warnings.catch_warnings(action="ignore"):
            outcome = case.act()
    except Hang:
        return "hang", f"no answer within {SECONDS} s"
    except subprocess.TimeoutExpired:
        return "hang", "no answer from a process of its own"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    said = f"exit code {outcome.code}; {outcome.stderr[-500:].strip()}"
    if fingerprint(case.kept) != before:
        return "lost", said
    if "Traceback" in outcome.stderr or "not foreseen" in outcome.stderr:
        return "traceback", said
    if outcome.code == 0:
        fine = case.expect != "refused" and case.right(outcome)
        return ("right or one clear line", said) if fine else ("wrong", f"accepted, or not what is right; {said}")
    fine = case.expect != "right" and clear(outcome) and case.says in outcome.stderr
    return ("right or one clear line", said) if fine else ("wrong", f"expected {case.expect} {case.says!r}; {said}")


def tally(cases: list[Case], report: Callable[[str], object]) -> Counter[str]:
    """Run all cases, say what went wrong, and count."""
    ends: Counter[str] = Counter()
    for case in cases:
        started = time.monotonic()
        end, detail = judge(case)
        ends[end] += 1
        if end != ENDS[0]:
            report(f"{end}: {case.name}: {' '.join(detail.split())[:400]}")
        elif (seconds := time.monotonic() - started) > 10:
            report(f"({case.name} took {seconds:.0f} s)")
    return ends


def main() -> int:
    from adversary_cases import all_cases

    logging.disable(logging.CRITICAL)
    stdout = os.fdopen(os.dup(1), "w")  # a command that gives up on its output closes it for all of this process
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        cases = all_cases(Path(folder))
        ends = tally(cases, lambda line: print(line, file=stdout, flush=True))
    print(f"{len(cases)} inputs: " + " / ".join(f"{ends[end]} {end}" for end in ENDS), file=stdout, flush=True)
    return int(any(ends[end] for end in ENDS[1:]))


if __name__ == "__main__":
    sys.exit(main())
