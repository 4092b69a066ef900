"""What a benchmark ran on, as part of its result."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def describe(*packages: str) -> dict[str, Any]:
    """Processor, threads, system and versions."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", *packages)},
    }


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON: to a file if one is named, and as one line on standard output, the last."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)
    print(json.dumps(result))
