"""python -m mtl"""

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # the folder it is called in: what lies there hides no library

    from mtl.cli import main

    main()
