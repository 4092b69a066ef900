"""How many threads to compute with: as many as the process may use cores, not as many as the machine has."""

from __future__ import annotations

import math
import os
import time
from functools import cache, lru_cache
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
LOAD = Path("/proc/loadavg")
OWN = Path("/proc/self/task")
_at_start = torch.get_num_threads()


def default_threads() -> int:
    """Where the caller names no number: torch's, if OMP_NUM_THREADS or ``torch.set_num_threads`` set it, else at most
    the cores that the process may use."""
    threads = torch.get_num_threads()
    chosen = threads != _at_start or "OMP_NUM_THREADS" in os.environ
    return threads if chosen else min(threads, cores())


def cores() -> int:
    """The cores that affinity and control groups leave to this process, a part of one counted as one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(quota(), allowed)))


def idle() -> int:
    """The machine's cores on which nothing but this process runs, as they were found within the last 50 ms."""
    return idle_at(int(time.monotonic() * 20))


@lru_cache(maxsize=1)
def idle_at(moment: int) -> int:
    """The cores that are idle now, at least one; all where that is not known. ``moment`` tells one call from the next.

    It looks at all processes, for which Linux counts the threads that run (proc(5), /proc/loadavg).
    """
    machine, running = os.cpu_count() or 1, lines(LOAD)
    if not running:
        return machine
    others = int(running[0].split()[3].partition("/")[0]) - 1
    if others:  # some may be ours, which spin for a while after they have worked
        states = [stat[0].rpartition(")")[2].split()[0] for task in OWN.glob("*/stat") if (stat := lines(task))]
        others -= max(0, states.count("R") - 1)
    return max(1, machine - max(0, others))


@cache
def quota(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> float:
    """The time that control groups give a process, in cores; infinite where there is no limit. It is read once.

    Version 2 has it in cpu.max, as "200000 100000" or "max 100000", and an outer group may be the narrower one;
    version 1 in two files, -1 being no limit (Linux, Documentation/admin-guide/cgroup-v2.rst and
    scheduler/sched-bwc.rst).
    """
    found = [math.inf]
    for line in lines(membership):
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        if number == "0":
            inner = groups / path.strip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(groups):
                    found += [ratio(*line.split()) for line in lines(folder / "cpu.max")[:1]]
        elif "cpu" in controllers.split(","):
            for folder in (groups / controllers / path.strip("/"), groups / controllers, groups / "cpu"):
                limits = lines(folder / "cpu.cfs_quota_us")[:1] + lines(folder / "cpu.cfs_period_us")[:1]
                found += [ratio(*limits)] if len(limits) == 2 else []
    return min(found)


def ratio(limit: str, period: str) -> float:
    return int(limit) / int(period) if limit.isdecimal() and int(limit) else math.inf


def lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()  # a thread's name is cut at a byte
    except OSError:
        return []
