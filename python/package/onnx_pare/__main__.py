"""The command, as `python -m onnx_pare`."""

import sys

from ._command import main

sys.exit(main())
