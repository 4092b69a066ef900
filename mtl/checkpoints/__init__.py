"""Pretrained models: from a name to verified files, from a folder to a model, and back."""

from collections.abc import Callable
from pathlib import Path

# Writes a model's folder with ONNX graphs; handed in by mtl/__init__.py, since the exporter stands above this room
export_onnx: Callable[[Path, Path], object]
