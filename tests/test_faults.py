"""A few of the moments of benchmarks/faults.py, and a short soak; the README has the whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> dict:
    """A benchmark's last line."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kill_at_a_few_moments() -> None:
    tallies = run("benchmarks.faults", "--moments", "3")["tallies"]
    assert len(tallies) == 7
    for name, tally in tallies.items():
        assert [tally[key] for key in ("tried", "survived", "lost", "doubled")] == [3, 3, 0, 0], name


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows() -> None:
    """Most of it is code for products of as many rows; without a bound, 200,000 rows took 150 MiB more."""
    result = run("benchmarks.soak", "--minutes", "0", "--rows", "250000")
    samples = dict(result["stream"]["rows and MiB"])
    assert samples[250000] < min(mib for rows, mib in samples.items() if rows > 100_000) + 25
