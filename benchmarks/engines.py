"""The engines that are compared, each behind the same method. Nothing is imported before it is used.

All get the same model folder, texts, maximum length (512 tokens) and number of threads, which ``streams`` divides:
1 stream runs one batch at a time on all threads, as many streams as threads run a batch on each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

MAX_LENGTH = 512


class Engine(Protocol):
    """``encode`` gives means of the last hidden states, normalized or not, (texts, dim), in the texts' order."""

    def encode(self, texts: list[str], batch: int) -> Any: ...


@dataclass(frozen=True)
class Entry:
    """An engine's class, how to make it of (folder, threads, streams, device), and what a search may choose for it."""

    precision: Literal["fp32", "bf16", "int8"]
    make: Callable[[str, int, int, str], Engine]
    has_batch: bool = True
    has_streams: bool = True


class Ours:
    """This project; it batches by tokens and chooses its streams itself, so there is nothing to search."""

    def __init__(self, folder: str, threads: int, device: str, precision: str) -> None:
        from mtl import SentenceEncoder

        self.model = SentenceEncoder.from_pretrained(folder, device=device, precision=precision)  # type: ignore[arg-type]
        self.threads = threads

    def encode(self, texts: list[str], batch: int) -> Any:
        return self.model.encode(texts, max_length=MAX_LENGTH, threads=self.threads, progress=False)


class SentenceTransformers:
    def __init__(self, folder: str, threads: int, device: str, bf16: bool = False) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(folder, device=device)
        self.model.max_seq_length = MAX_LENGTH
        if bf16:
            self.model.bfloat16()

    def encode(self, texts: list[str], batch: int) -> Any:
        return self.model.encode(texts, batch_size=batch, show_progress_bar=False)


class Padded:
    """What the exported models share: the tokenizer, batches sorted by length, a thread for each stream."""

    def __init__(self, folder: str, streams: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.tokenizer.no_padding()
        self.pool = ThreadPoolExecutor(streams)

    def means(self, ids: Any, mask: Any) -> Any:
        """Means (texts, dim) of the kept hidden states, for padded ids and mask (texts, length)."""
        raise NotImplementedError

    def run(self, ids: list[list[int]]) -> Any:
        import numpy as np

        padded = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, text in enumerate(ids):
            padded[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return self.means(padded, mask)

    def encode(self, texts: list[str], batch: int) -> Any:
        import numpy as np

        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches = [[ids[i] for i in order[first : first + batch]] for first in range(0, len(order), batch)]
        parts = self.pool.map(self.run, batches) if len(batches) > 1 else map(self.run, batches)
        vectors = np.concatenate(list(parts))[np.argsort(order)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class OnnxRuntime(Padded):
    def __init__(self, folder: str, threads: int, streams: int, file: str) -> None:
        super().__init__(folder, streams)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads // streams  # a call computes on the thread that makes it, if 1
        self.session = onnxruntime.InferenceSession(str(exported(folder) / file), options, ["CPUExecutionProvider"])

    def means(self, ids: Any, mask: Any) -> Any:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino(Padded):
    """``precision`` "f32" holds it to fp32; None is its default, bf16 where the processor has it."""

    def __init__(self, folder: str, threads: int, streams: int, precision: str | None) -> None:
        super().__init__(folder, streams)
        import threading

        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams,
                    "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY"}  # fmt: skip
        if precision:
            settings["INFERENCE_PRECISION_HINT"] = precision
        self.model = openvino.Core().compile_model(str(exported(folder) / "model.onnx"), "CPU", settings)
        self.local = threading.local()

    def means(self, ids: Any, mask: Any) -> Any:
        if not hasattr(self.local, "request"):
            self.local.request = self.model.create_infer_request()
        return self.local.request.infer({"input_ids": ids, "attention_mask": mask})[0].copy()


class CTranslate2(Padded):
    def __init__(self, folder: str, threads: int, streams: int, compute_type: str) -> None:
        super().__init__(folder, streams)
        import ctranslate2

        self.model = ctranslate2.Encoder(
            str(exported(folder) / "ct2"), compute_type=compute_type, inter_threads=streams,
            intra_threads=threads // streams,
        )  # fmt: skip

    def run(self, ids: list[list[int]]) -> Any:
        import numpy as np

        hidden = np.asarray(self.model.forward_batch(ids).last_hidden_state)
        return np.stack([rows[: len(text)].mean(axis=0) for rows, text in zip(hidden, ids, strict=True)])


def exported(folder: str) -> Path:
    """Where the exported forms of a model are; made by ``python -m benchmarks.export``."""
    return Path(os.environ["MTL_BENCH_EXPORTS"]) / Path(folder).name


def ours(precision: Any) -> Entry:
    return Entry(precision, lambda f, t, s, device: Ours(f, t, device, precision), has_batch=False, has_streams=False)


ENGINES = {
    "mtl": ours("fp32"),
    "sentence-transformers": Entry("fp32", lambda f, t, s, d: SentenceTransformers(f, t, d), has_streams=False),
    "onnxruntime": Entry("fp32", lambda f, t, s, d: OnnxRuntime(f, t, s, "fused.onnx")),
    "openvino": Entry("fp32", lambda f, t, s, d: OpenVino(f, t, s, "f32")),
    "ctranslate2": Entry("fp32", lambda f, t, s, d: CTranslate2(f, t, s, "float32")),
    "mtl bf16": ours("bf16"),
    "sentence-transformers bf16": Entry(
        "bf16", lambda f, t, s, d: SentenceTransformers(f, t, d, bf16=True), has_streams=False
    ),
    "openvino default": Entry("bf16", lambda f, t, s, d: OpenVino(f, t, s, None)),
    "mtl int8": ours("int8"),
    "onnxruntime int8": Entry("int8", lambda f, t, s, d: OnnxRuntime(f, t, s, "int8.onnx")),
    "ctranslate2 int8": Entry("int8", lambda f, t, s, d: CTranslate2(f, t, s, "int8")),
}
