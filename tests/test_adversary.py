"""Hundreds of bad and extreme inputs, none of which may end in a traceback, a hang, something wrong or lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_adversary() -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "adversary.py"], env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "/ 0 traceback / 0 hang / 0 wrong / 0 lost" in done.stdout
