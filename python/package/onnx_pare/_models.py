"""The kinds of models: a path, bytes, or `onnx.ModelProto`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from ._errors import PareError

if TYPE_CHECKING:
    import onnx

Model: TypeAlias = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, "onnx.ModelProto"]
"""A model: the path of its file, the bytes of its file, or an `onnx.ModelProto`."""

M = TypeVar("M", bound=Model)


def is_path(model: object) -> bool:
    """Returns true if a model is given by its path."""
    return isinstance(model, (str, os.PathLike))


def is_proto(model: object) -> bool:
    """Returns true for an `onnx.ModelProto`, whatever copy of protobuf it belongs to."""
    return hasattr(model, "SerializeToString") and hasattr(model, "graph")


def native(model: Model) -> str | bytes:
    """The path or the bytes of a model."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, bytes):
        return model
    if isinstance(model, (bytearray, memoryview)):
        return bytes(model)
    if is_proto(model):
        return serialize(model)
    raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")


def serialize(proto: onnx.ModelProto) -> bytes:
    """The bytes of an `onnx.ModelProto`."""
    try:
        return bytes(proto.SerializeToString())
    except Exception as error:
        if proto.ByteSize() < 2**31 - 1:
            raise
        raise PareError(
            "the model exceeds the limit of 2 GiB of one protobuf message",
            "save it with external data, `onnx.save(model, path, save_as_external_data=True)`, and give the path",
        ) from error


def parse(data: bytes, like: object = None) -> onnx.ModelProto:
    """The `onnx.ModelProto` in bytes, of the class of `like` if that is one."""
    proto: Any
    if like is not None and is_proto(like):
        proto = type(like)()
    else:
        proto = onnx_package().ModelProto()
    proto.ParseFromString(data)
    return proto  # type: ignore[no-any-return]


def onnx_package() -> Any:
    """The package onnx."""
    try:
        import onnx
    except ImportError as error:
        raise PareError("the package onnx is not installed", "`pip install onnx` installs it") from error
    return onnx
