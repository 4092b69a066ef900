"""One engine in a process of its own, so that its threads and memory are its own.

Reads a JSON object a line: {"texts": [...], "batch": int, "save": path or null}; answers with one: the seconds it
took, and its peak memory so far. With a batch of 0, texts go one at a time, and the seconds are a list. The first
answer comes unasked, when one text has been encoded.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def timed(engine: Any, texts: list[str], batch: int) -> tuple[float, Any]:
    """Seconds, and the vectors."""
    started = time.perf_counter()
    vectors = engine.encode(texts, batch)
    return time.perf_counter() - started, vectors


def peak_mib() -> float:
    """The most memory this process has held. What getrusage says would include the parent's, from before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    name, folder, threads, streams, device = sys.argv[1:]
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    from benchmarks.engines import ENGINES

    engine = ENGINES[name].make(folder, int(threads), int(streams), device)
    engine.encode(["One short text."], 1)

    def answer(seconds: object) -> None:
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), file=out, flush=True)

    answer(0)
    for line in sys.stdin:
        request = json.loads(line)
        if request["batch"] == 0:
            answer([timed(engine, [text], 1)[0] for text in request["texts"]])
            continue
        seconds, vectors = timed(engine, request["texts"], request["batch"])
        if request["save"]:
            import numpy as np

            np.save(request["save"], vectors)
        answer(seconds)


if __name__ == "__main__":
    main()
