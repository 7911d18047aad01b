"""The command `pare`."""

from __future__ import annotations

import os
import sys

from . import _native
from ._runtime import library_folder


def main() -> int:
    """Runs the command with the arguments of the process, and returns its exit code."""
    folder = library_folder()
    if folder is not None:
        os.environ.setdefault("PARE_ONNXRUNTIME", str(folder))
    return _native.main(["pare", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
