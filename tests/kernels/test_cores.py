"""The number of threads follows what the process may use."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtl.kernels import cores
from mtl.kernels.cores import default_threads, quota


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("max 100000\n", "max 100000\n", math.inf), ("400000 100000\n", "150000 100000\n", 1.5),
     ("50000 100000\n", "max 100000\n", 0.5), (None, None, math.inf)],
)  # fmt: skip
def test_the_narrowest_group_of_version_2(tmp_path: Path, outer: str, inner: str, expected: float) -> None:
    (tmp_path / "own").write_text("0::/job/step\n")
    group(tmp_path / "groups" / "job" / "step", **({"cpu__max": inner} if inner else {}))
    group(tmp_path / "groups" / "job", **({"cpu__max": outer} if outer else {}))
    assert quota(tmp_path / "groups", tmp_path / "own") == expected


@pytest.mark.parametrize(("limit", "expected"), [("-1\n", math.inf), ("250000\n", 2.5)])
def test_version_1(tmp_path: Path, limit: str, expected: float) -> None:
    (tmp_path / "own").write_text("11:memory:/x\n4:cpu,cpuacct:/x\n")
    group(tmp_path / "groups" / "cpu,cpuacct" / "x", cpu__cfs_quota_us=limit, cpu__cfs_period_us="100000\n")
    assert quota(tmp_path / "groups", tmp_path / "own") == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert quota(tmp_path, tmp_path / "none") == math.inf


def test_a_limit_holds_unless_the_user_set_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "_at_start", before)
    monkeypatch.setattr(cores, "cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert default_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(before + 1)
    try:
        assert default_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_affinity_is_kept_to() -> None:
    """Of a mask that is set after torch began, too."""
    code = (
        "import os; from mtl.kernels.cores import cores, default_threads; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(cores(), default_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(
    ("running", "own", "expected"),
    [("1/99", "R", 4), ("3/99", "R", 2), ("3/99", "RRS", 3), ("9/99", "R", 1), ("1/99", "RR", 4), (None, "R", 4)],
)
def test_idle_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: str, own: str, expected: int) -> None:
    """Of a machine with four; what runs of this process itself is not counted."""
    if running:
        (tmp_path / "load").write_text(f"0.50 0.40 0.30 {running} 4711\n")
    for number, state in enumerate(own):
        group(tmp_path / "tasks" / str(number), stat=f"{number} (a) b) {state} 1 1\n")
    monkeypatch.setattr(cores, "LOAD", tmp_path / "load")
    monkeypatch.setattr(cores, "OWN", tmp_path / "tasks")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.idle_at.__wrapped__(0) == expected


def test_idle_cores_are_looked_for_every_50_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(cores, "idle_at", lambda moment: looked.append(moment) or 1)
    for seconds in (7.0, 7.04, 7.051):
        monkeypatch.setattr(cores.time, "monotonic", lambda seconds=seconds: seconds)
        cores.idle()
    assert looked == [140, 140, 141]
