"""Training on pairs, measured: beside labels, beside sentence-transformers' trainer, and what it costs.

    python -m benchmarks.pairs quality --data FOLDER --output FILE     (one made before is continued)
    python -m benchmarks.pairs speed --data FOLDER
    python -m benchmarks.pairs memory

FOLDER holds stsb/{train,dev}.jsonl (text_a, text_b, score from 0 to 5), sst2/{train,dev}.jsonl (text, label 0 or 1)
and trec/train.jsonl (text, label, and fold, of which 0 is the dev set). The last line is the result as JSON.
"""

import click

from benchmarks.pair_costs import memory, speed
from benchmarks.pair_quality import quality


@click.group(help=__doc__)
def main() -> None:
    pass


for command in (quality, speed, memory):
    main.add_command(command)

if __name__ == "__main__":
    main()
