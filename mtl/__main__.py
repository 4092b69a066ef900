"""python -m mtl"""

from mtl.cli import main

main()
