"""Folders in which nothing may be written: one line from every command, and nothing changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = """
import contextlib, io, sys
from mtl.cli import main
model, source, folder, recipe = sys.argv[1:]
for arguments in (
    ["embed", "-m", model, "-i", source, "-o", f"{folder}/o.npy"],
    ["embed-corpus", source, "-m", model, "--number-rows", "-o", folder],
    ["embed-corpus", source, "-m", model, "--number-rows", "-o", f"{folder}/new"],
    ["train", recipe, "-o", f"{folder}/run"],
):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main(arguments)
    except SystemExit as stop:
        print(stop.code, said.getvalue().splitlines()[-1])
"""


def test_a_folder_that_may_only_be_read(folder: Path, tmp_path: Path) -> None:
    source, recipe, closed = tmp_path / "in.jsonl", tmp_path / "r.toml", tmp_path / "closed"
    source.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    task = f'[[task]]\nname = "t"\nlabels = ["x", "y"]\ntrain = "{source}"\n'
    recipe.write_text(f'model = "{folder}"\n{task}')
    closed.mkdir()
    closed.chmod(0o555)
    as_others = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    command = [*as_others, sys.executable, "-c", COMMANDS, folder, source, closed, recipe]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("root may write everywhere, and there is no setpriv to give that up")
    assert done.stdout.splitlines() == [
        f"1 error: {closed}/o.npy cannot be written: {closed} is no folder that we may write to",
        f"1 error: {closed} cannot be written: Permission denied",
        f"1 error: {closed}/new cannot be made: Permission denied",
        f"1 error: {closed}/run cannot be written: Permission denied",
    ], done.stderr
    assert list(closed.iterdir()) == []
