"""One engine in a process of its own, so that its threads and memory are its own.

Reads a JSON object a line: {"texts": [...], "save": path or null, "singly": bool}; answers with one: the seconds
it took (a list of them, where texts go singly), and its peak memory. The first answer comes unasked, when one
text has been encoded.
"""

import json
import resource
import sys
import time


def main() -> None:
    name, folder, threads, device = sys.argv[1:]
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    from benchmarks.engines import ENGINES

    engine = ENGINES[name](folder, int(threads), device)
    engine.encode(["One short text."])

    def answer(seconds: object) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=out, flush=True)

    answer(0)
    for line in sys.stdin:
        request = json.loads(line)
        texts = request["texts"]
        if request["singly"]:
            seconds = []
            for text in texts:
                started = time.perf_counter()
                engine.encode([text])
                seconds.append(time.perf_counter() - started)
            answer(seconds)
            continue
        started = time.perf_counter()
        vectors = engine.encode(texts)
        seconds = time.perf_counter() - started
        if request["save"]:
            import numpy as np

            np.save(request["save"], vectors)
        answer(seconds)


if __name__ == "__main__":
    main()
