"""A user's own files beside a script do not take the place of the libraries that this one needs."""

from __future__ import annotations

import importlib
import logging
import os
import sys

NEEDED = ("numpy", "torch", "tokenizers", "safetensors", "huggingface_hub", "click", "tqdm")


def import_shadowed() -> None:
    """Import each library that a file of the same name hides, from behind it, and say so in one line.

    Python looks first beside the script, or where ``python -c`` was called, so that a tokenizers.py there would be
    imported here too. From then on ``import tokenizers`` gives the library everywhere. What a program has imported
    before is left alone.
    """
    folder = os.path.abspath(sys.path[0]) if sys.path else ""
    files = {name: (f"{name}.py", os.path.join(name, "__init__.py")) for name in NEEDED if name not in sys.modules}
    hidden = [name for name, paths in files.items() if any(os.path.isfile(os.path.join(folder, x)) for x in paths)]
    if not hidden or os.path.basename(folder) in ("site-packages", "dist-packages"):
        return
    first = sys.path.pop(0)
    sys.path.append(first)
    try:
        for name in hidden:
            importlib.import_module(name)
    finally:
        sys.path.remove(first)
        sys.path.insert(0, first)
    log = logging.getLogger("mtl")
    log.warning("%s holds %s, by the name of a library that mtl needs: it is the library that is imported from here on",
                folder, ", ".join(hidden))  # fmt: skip
