"""What `mtl` and `python -m mtl` run: the command line, which Ctrl-C always ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

PATIENCE = 0.6  # seconds for putting away what is under way


def end() -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt what runs; and if that does not end it, end it.

    A library's clean-up or import may swallow a KeyboardInterrupt, and native code does not hear of it. What a command
    writes bears being ended at any moment. (Training, which takes its time to save, has a handler of its own.)
    """
    if not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        timer = threading.Timer(PATIENCE, end)
        timer.daemon = True
        timer.start()
    raise KeyboardInterrupt


def open_streams() -> None:
    """Open those of standard input, output and error that are closed, so that no file of ours takes their numbers.

    What is written to a standard output that was closed fails, since nobody would have it.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the least number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def main() -> None:
    open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, interrupt)
    try:
        from mtl.cli import main as run
    except KeyboardInterrupt:
        end()
    run()


if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # the folder that it is called in: what lies there hides no library
    main()
