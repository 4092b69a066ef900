"""python -m weights, in a clone: list, fetch and verify pretrained models. The code is in mtl/checkpoints."""

from mtl.checkpoints.__main__ import main

main()
