"""Embedding a corpus: many files in, as many Parquet files out, in one process or on a Ray cluster."""

from mtl.errors import InputError

try:
    import pyarrow  # noqa: F401
except ImportError:
    raise InputError("embedding a corpus needs pyarrow, which is not installed; pip install 'mtl[parquet]'") from None
