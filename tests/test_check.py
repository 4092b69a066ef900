"""The same text, the same bits, under every instruction set that this machine can run."""

import os
import subprocess
import sys

import pytest
import torch
from tokenizers import processors

from mtl import SentenceEncoder
from mtl.check import text_trials
from mtl.checkpoints.load import Checkpoint
from mtl.encode.precision import native_bf16
from mtl.kernels.check import LEVELS, VARIABLES, levels

SHORT = """
import torch
from mtl import SentenceEncoder
from mtl.check import distilbert_shape
from mtl.kernels.check import HEADS, attention_trials, linear_trials
found = []
shapes = {(12, 32), (12, 64), *HEADS}
for threads in (1, 2, 3):
    for precision in ("fp32", "int8"):
        minilm = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision=precision)
        for model in (minilm, distilbert_shape(minilm)):
            found += [(threads, *trial) for trial in linear_trials(model.program(), threads)]
    for shape in shapes:
        found += [(threads, *trial) for trial in attention_trials(*shape, threads)]
assert len(found) == 3 * (2 * 2 * 4 + 7 * len(shapes)), len(found)
print([trial for trial in found if trial[-1]])
"""


def run(level: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | levels()[level], capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize("level", levels())
def test_every_kernel_gives_a_row_the_same_bits(level: str) -> None:
    """A failure on another processor shows here: the kernels of each level, in fp32 and int8, on 1 to 3 threads."""
    done = run(level, SHORT)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_levels_end_with_what_the_machine_has() -> None:
    found = levels()
    assert list(found)[-1] == "as it is"
    assert found["as it is"] == {}
    assert all(tuple(found[name]) == VARIABLES for name in LEVELS if name in found)


@pytest.mark.slow
def test_check_all() -> None:
    done = subprocess.run([sys.executable, "-m", "mtl", "check", "--all"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("distilbert-shape") == 2 * len(levels()) + native_bf16(torch.device("cpu"))


def test_a_tokenizer_without_special_tokens(checkpoint: Checkpoint) -> None:
    """It gives no token for one of the texts that are tried."""
    checkpoint.tokenizer.post_processor = processors.Sequence([])
    before = torch.get_rng_state()
    found = dict(text_trials(SentenceEncoder.from_checkpoint(checkpoint)))
    assert set(found.values()) == {0}
    assert torch.equal(torch.get_rng_state(), before), "the process's own random numbers stay where they are"
    assert any(name.startswith("encode, alone") for name in found)
