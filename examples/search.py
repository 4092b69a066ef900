"""Semantic search over the lines of a file.

python examples/search.py README.md "how do I train it?" "which models does it load?"
"""

import sys
from pathlib import Path

from mtl import SentenceEncoder


def main(path: str, *queries: str) -> None:
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    model = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    corpus = model.encode(lines)  # (lines, 384); these vectors have length 1, so that products are cosines
    scores = model.encode(list(queries)) @ corpus.T  # (queries, lines)
    for query, row in zip(queries, scores, strict=True):
        print(query)
        for i in row.argsort()[::-1][:3]:
            print(f"  {row[i]:.3f}  {lines[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
