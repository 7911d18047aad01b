"""The ONNX Runtime of the Python package `onnxruntime`, which models are run in."""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

from . import _native
from ._errors import PareError

_lock = threading.Lock()
_adopted = False


def adopt(library: str | None) -> None:
    """Makes models run in the package `onnxruntime` if it is installed, without a second copy of ONNX Runtime.

    Importing it loads its library. Registering the native module as a library of custom operators, of which it has
    none, gives it the interface of that library.
    """
    global _adopted
    if library or os.environ.get("ORT_DYLIB_PATH"):
        return
    with _lock:
        if _adopted:
            return
        package = package_or_none()
        if package is None:
            return
        if not _is_shareable(package):
            os.environ.setdefault("PARE_ONNXRUNTIME", str(library_folder()))
            return
        package.SessionOptions().register_custom_ops_library(str(_native.__file__))
        _native.adopt_runtime("the package onnxruntime")
        _adopted = True


# The first release that is known to share its environment with its Python module. In 1.19 a process has only one of them
# in a library, which the module holds; there the library beside the module is loaded.
_SHARES = (1, 32)


def _is_shareable(package: Any) -> bool:
    major, minor = str(package.__version__).split(".")[:2]
    return (int(major), int(minor)) >= _SHARES


def package_or_none() -> Any:
    """The package `onnxruntime`, if it is installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def package() -> Any:
    """The package `onnxruntime`."""
    found = package_or_none()
    if found is None:
        raise PareError("the package onnxruntime is not installed", "`pip install onnxruntime` installs it")
    return found


def library_folder() -> Path | None:
    """The folder of the library that the package contains, found without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "capi"
