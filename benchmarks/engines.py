"""The engines that are compared, each behind the same two methods. Nothing is imported before it is used.

All get the same model folder, number of threads, texts and maximum length (512 tokens); each is given the batches
it does best with: sorted by length, and several at once where it can.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

MAX_LENGTH = 512
BATCH = 32


class Engine(Protocol):
    """``encode`` gives unnormalized or normalized means of the last hidden states, (texts, dim), in order."""

    def encode(self, texts: list[str]) -> Any: ...


class Ours:
    def __init__(self, folder: str, threads: int, device: str, precision: str = "fp32") -> None:
        from mtl import SentenceEncoder

        self.model = SentenceEncoder.from_pretrained(folder, device=device, precision=precision)  # type: ignore[arg-type]
        self.threads = threads

    def encode(self, texts: list[str]) -> Any:
        return self.model.encode(texts, max_length=MAX_LENGTH, threads=self.threads, progress=False)


class SentenceTransformers:
    def __init__(self, folder: str, threads: int, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(folder, device=device)
        self.model.max_seq_length = MAX_LENGTH

    def encode(self, texts: list[str]) -> Any:
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)


class Padded:
    """What the exported models share: the tokenizer, batches sorted by length, and mean pooling."""

    def __init__(self, folder: str, workers: int = 1) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.tokenizer.no_padding()
        self.workers = workers

    def hidden(self, ids: Any, mask: Any) -> Any:
        """(texts, length, dim) for padded ids and mask (texts, length)."""
        raise NotImplementedError

    def run(self, ids: list[list[int]]) -> Any:
        import numpy as np

        length = max(map(len, ids))
        padded = np.zeros((len(ids), length), dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, text in enumerate(ids):
            padded[row, : len(text)] = text
            mask[row, : len(text)] = 1
        hidden = self.hidden(padded, mask)
        summed = np.einsum("tld,tl->td", hidden, mask.astype(np.float32))
        return summed / np.linalg.norm(summed, axis=1, keepdims=True)

    def encode(self, texts: list[str]) -> Any:
        import numpy as np

        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        with ThreadPoolExecutor(self.workers) as pool:
            parts = list(pool.map(lambda batch: self.run([ids[i] for i in batch]), batches))
        vectors = np.concatenate(parts)
        return vectors[np.argsort(order)]


class OnnxRuntime(Padded):
    def __init__(self, folder: str, threads: int, device: str, file: str = "model.onnx") -> None:
        super().__init__(folder)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(exported(folder) / file), options, providers)

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino(Padded):
    def __init__(self, folder: str, threads: int, device: str) -> None:
        super().__init__(folder, workers=threads)
        import threading

        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads,
                    "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
        self.model = openvino.Core().compile_model(str(exported(folder) / "model.onnx"), "CPU", settings)
        self.local = threading.local()

    def hidden(self, ids: Any, mask: Any) -> Any:
        if not hasattr(self.local, "request"):
            self.local.request = self.model.create_infer_request()
        return self.local.request.infer({"input_ids": ids, "attention_mask": mask})[0]


class CTranslate2(Padded):
    def __init__(self, folder: str, threads: int, device: str, compute_type: str = "float32") -> None:
        super().__init__(folder, workers=threads)
        import ctranslate2

        self.model = ctranslate2.Encoder(
            str(exported(folder) / "ct2"), compute_type=compute_type, inter_threads=threads, intra_threads=1
        )

    def run(self, ids: list[list[int]]) -> Any:
        import numpy as np

        hidden = np.array(self.model.forward_batch(ids).last_hidden_state)
        mask = np.arange(hidden.shape[1]) < np.array([len(text) for text in ids])[:, None]
        summed = np.einsum("tld,tl->td", hidden, mask.astype(np.float32))
        return summed / np.linalg.norm(summed, axis=1, keepdims=True)


def exported(folder: str) -> Path:
    """Where the exported forms of a model are, beside it; made by ``python -m benchmarks.export``."""
    return Path(os.environ["MTL_BENCH_EXPORTS"]) / Path(folder).name


ENGINES: dict[str, Callable[[str, int, str], Engine]] = {
    "mtl": Ours,
    "mtl int8": lambda folder, threads, device: Ours(folder, threads, device, "int8"),
    "mtl bf16": lambda folder, threads, device: Ours(folder, threads, device, "bf16"),
    "sentence-transformers": SentenceTransformers,
    "onnxruntime": OnnxRuntime,
    "onnxruntime int8": lambda folder, threads, device: OnnxRuntime(folder, threads, device, "model-int8.onnx"),
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "ctranslate2 int8": lambda folder, threads, device: CTranslate2(folder, threads, device, "int8"),
}
