"""Semantic search over the lines of a file.

python examples/search.py README.md "how do I train it?" "which models does it load?"
"""

import sys
from pathlib import Path

from mtl import SentenceEncoder


def main(path: str, *queries: str) -> None:
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    model = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    scores, places = model.search(list(queries), lines, k=3)  # both (queries, 3), best first
    for query, row, found in zip(queries, scores, places, strict=True):
        print(query)
        for score, place in zip(row, found, strict=True):
            print(f"  {score:.3f}  {lines[place]}")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    main(*sys.argv[1:])
