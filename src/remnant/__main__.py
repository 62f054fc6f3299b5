"""``python -m remnant``: the command line, without taking modules from the current folder first."""

import sys

if not sys.flags.safe_path and sys.path:
    del sys.path[0]

from remnant.cli import main

if __name__ == "__main__":
    main(prog_name="remnant")
