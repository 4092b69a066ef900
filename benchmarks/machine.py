"""What a benchmark ran on, as part of its result, and where that result belongs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mtl.disk import atomic_write
from mtl.errors import MtlError

RESULTS = Path(__file__).parent / "results"
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "0x41": "arm"}
LEVELS = (("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "neon"))


def cpu_fields() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo; empty where there is none."""
    try:
        entry = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in entry.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def flags(fields: dict[str, str]) -> frozenset[str]:
    """The instruction sets, by Linux's names."""
    return frozenset((fields.get("flags") or fields.get("Features", "")).split())


def slug(fields: dict[str, str]) -> str:
    """A processor's maker, line, widest instructions and family, as amd-epyc-avx512-family26: its results' folder."""
    vendor = fields.get("vendor_id") or fields.get("CPU implementer", "")
    name = fields.get("model name", "").lower()
    family = next((word for word in ("epyc", "ryzen", "xeon", "core") if word in name), "")
    found = flags(fields)
    level = next((level for flag, level in LEVELS if flag in found), platform.machine().lower())
    generation = f"family{fields['cpu family']}" if "cpu family" in fields else ""  # of one maker, the core's design
    parts = (VENDORS.get(vendor, re.sub(r"\W+", "", vendor.lower()) or "cpu"), family, level, generation)
    return "-".join(part for part in parts if part)


def native_bf16(found: frozenset[str]) -> bool:
    """Whether the processor multiplies in bf16 itself."""
    return bool(found & {"amx_bf16", "avx512_bf16", "bf16"})


def native_int8(found: frozenset[str]) -> bool:
    """Whether it adds products of 8-bit integers in 32 bits; otherwise weights of 8 bits can overflow."""
    return bool(found & {"amx_int8", "avx512_vnni", "avx_vnni", "asimddp"})


def commit() -> str:
    """The commit that is measured, with a plus sign where files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def describe(*packages: str) -> dict[str, Any]:
    """Processor, threads, system, versions, date and commit."""
    fields = cpu_fields()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": slug(fields),
        "cpu": fields.get("model name") or platform.processor(),
        "family": [fields[key] for key in ("cpu family", "model", "stepping") if key in fields],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "system": platform.platform(terse=True),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", *packages)},
    }


def result_path(folder: Path | None, name: str) -> Path | None:
    """Where this processor's result of a name belongs in the results folder; none where none is to be kept."""
    return folder / slug(cpu_fields()) / f"{name.rstrip('/').rsplit('/', 1)[-1]}.json" if folder else None


def earlier(path: Path | None) -> dict[str, Any]:
    """What a result's file holds from before; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}


def when(described: dict[str, Any]) -> dict[str, str]:
    """The date and commit of a part that is kept beside parts of other runs."""
    return {"date": described["date"], "commit": described["commit"]}


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON: to a file if one is named, and as one line on standard output, the last."""
    if path is not None:
        with atomic_write(path, MtlError) as file:
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
