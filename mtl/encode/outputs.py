"""Vectors to files as they come, in several number formats, and how a file that was interrupted goes on.

An output appears under its name only when it is whole. Until then it is NAME.partial, with NAME.partial.json
beside it, which says how far it got, with which settings and on which texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtl.errors import InputError

OutputPrecision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Vectors = NDArray[Any]

SUFFIXES = (".npy", ".jsonl", ".safetensors")
SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
HEADER = 256  # bytes of a safetensors header here, with room for the numbers to grow


def value_ranges(vectors: Vectors) -> Vectors:
    """The least and the largest value of each dimension, (2, dim) float32."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def convert(vectors: Vectors, precision: OutputPrecision, ranges: Vectors | None = None) -> Vectors:
    """Float32 vectors (texts, dim) in another number format, as sentence-transformers' quantize_embeddings does.

    float16; int8 and uint8: 256 steps over each dimension's range, ``ranges`` (2, dim), by default that of these
    vectors; binary and ubinary: one bit per dimension, set where it is positive, eight to a byte (texts, dim / 8),
    as int8 (minus 128) or uint8.
    """
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if precision in ("int8", "uint8"):
        least, largest = value_ranges(vectors) if ranges is None else ranges
        steps = (largest - least) / 255
        levels = np.clip(np.floor((vectors - least) / np.where(steps == 0, 1, steps)), 0, 255)
        return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    return vectors.astype(precision, copy=False)


def converted_shape(dim: int, precision: OutputPrecision) -> tuple[int, str]:
    """How wide a converted vector is, and its numpy dtype."""
    if precision in ("binary", "ubinary"):
        return -(-dim // 8), "int8" if precision == "binary" else "uint8"
    return dim, precision


class Output:
    """A file of vectors that grows window by window: .npy, .safetensors (one tensor ``embeddings``) or .jsonl.

    With ``resume``, what an interrupted run with the same settings left is gone on with; ``rows`` says how much.

    Raises:
        InputError: the file cannot be written, there is nothing to go on with, or it has other settings.
    """

    def __init__(self, path: Path, dim: int, dtype: str, settings: dict[str, Any], resume: bool = False) -> None:
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected the name of a file")
        self.path, self.dim, self.dtype, self.settings = path, dim, dtype, settings
        self.partial = path.with_name(path.name + ".partial")
        self.state = path.with_name(path.name + ".partial.json")
        self.rows, self.digest = 0, hashlib.sha256()
        state = self.read_state() if resume else None
        try:
            self.file = self.partial.open("r+b" if state else "w+b")
            if state:
                self.rows = state["rows"]
                self.file.truncate(state["bytes"])
                self.file.seek(0, 2)
            else:
                self.state.unlink(missing_ok=True)
                self.write_header()
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        self.expected = state["texts"] if state else None

    def read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state.read_text())
            size = self.partial.stat().st_size
            before, rows, end = state["settings"], int(state["rows"]), int(state["bytes"])
            str(state["texts"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self.partial} holds nothing to go on with; start again without --resume") from None
        if before != self.settings:
            keys = [key for key in self.settings if before.get(key) != self.settings[key]]
            was = ", ".join(f"{key} was {before.get(key)!r}, is {self.settings[key]!r}" for key in keys)
            raise InputError(f"{self.partial} was made otherwise: {was}; use those settings, or start without --resume")
        if size < end or rows < 1:
            raise InputError(f"{self.partial} is shorter than it was; start again without --resume")
        return dict(state)

    def skip(self, texts: Iterator[str]) -> None:
        """Pass over the texts that are done.

        Raises:
            InputError: they are not the texts that were done.
        """
        found = 0
        for text in islice(texts, self.rows):
            self.note(text)
            found += 1
        if self.expected is not None and (found < self.rows or self.digest.hexdigest() != self.expected):
            raise InputError(f"the first {self.rows} texts are not those in {self.partial}; start without --resume")

    def note(self, text: str) -> None:
        data = text.encode()
        self.digest.update(len(data).to_bytes(8, "little") + data)

    def write_header(self) -> None:
        """What comes before the rows, for as many as there are; its length stays the same."""
        self.file.seek(0)
        if self.path.suffix == ".npy":  # numpy leaves room for the number of rows to grow
            fields = {"descr": np.dtype(self.dtype).newbyteorder("<").str, "fortran_order": False,
                      "shape": (self.rows, self.dim)}  # fmt: skip
            np.lib.format.write_array_header_1_0(self.file, fields)
        if self.path.suffix == ".safetensors":  # the format lets its JSON end in spaces
            offsets = [0, self.rows * self.dim * np.dtype(self.dtype).itemsize]
            tensor = {"dtype": SAFETENSORS_TYPES[self.dtype], "shape": [self.rows, self.dim], "data_offsets": offsets}
            header = json.dumps({"embeddings": tensor}).encode().ljust(HEADER - 8)
            self.file.write(len(header).to_bytes(8, "little") + header)

    def write(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Add a window of rows.

        Raises:
            InputError: the disk is full, or the like; what was there before can be gone on with.
        """
        try:
            if self.path.suffix == ".jsonl":
                for text, vector in zip(texts, vectors, strict=True):
                    digits = ", ".join(map(str, vector))  # the digits give back the number exactly
                    line = f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{digits}]}}\n'
                    self.file.write(line.encode())
            else:
                little = vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)
                self.file.write(np.ascontiguousarray(little).data)
            self.file.flush()
            self.rows += len(vectors)
            for text in texts:
                self.note(text)
            content = {"settings": self.settings, "rows": self.rows, "bytes": self.file.tell(),
                       "texts": self.digest.hexdigest()}  # fmt: skip
            temporary = self.state.with_name(self.state.name + ".new")
            temporary.write_text(json.dumps(content))
            temporary.replace(self.state)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            InputError: it cannot be written.
        """
        try:
            if self.path.suffix != ".jsonl":
                self.write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.partial.replace(self.path)
            self.state.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None

    def stop(self) -> bool:
        """After a failure: keep what can be gone on with, remove what cannot. Whether something is kept."""
        self.file.close()
        if self.rows and self.state.exists():
            return True
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        return False
