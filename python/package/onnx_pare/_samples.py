"""Samples of any kind, as files that the library reads.

A path is used as it is. Everything else is written into a temporary folder, one batch at a time, so that never more than
one batch is in memory: batches of equal shapes into a `.npz`, others as ONNX test data, one folder each.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, TypeVar, Union, runtime_checkable

import numpy as np
import numpy.typing as npt

from ._errors import PareError

Feed: TypeAlias = Mapping[str, Any]
"""A batch: an array for each input, and optionally `labels`. The first axis counts samples."""


@runtime_checkable
class DataReader(Protocol):
    """What `onnxruntime.quantization.CalibrationDataReader` is."""

    def get_next(self) -> Any: ...


Samples: TypeAlias = Union[str, "os.PathLike[str]", Feed, Iterable[Feed], DataReader]
"""Samples: the path of a `.npz` or `.npy` file or of a folder of ONNX test data, a dictionary of arrays, an iterable of
batches, or a `CalibrationDataReader`."""

T = TypeVar("T")


class batches(Iterable[Feed]):
    """The batches that a function makes of each item of a loader, such as a `torch.utils.data.DataLoader`.

    Args:
        loader: Anything that can be iterated over; it is iterated over as often as the samples are.
        function: Returns the array of each input, and optionally `labels`, for an item of the loader.
        limit: Number of batches at most.

    Example:
        `samples=batches(loader, lambda item: {"image": item[0], "labels": item[1]})`
    """

    def __init__(self, loader: Iterable[T], function: Callable[[T], Feed], limit: int | None = None) -> None:
        self._loader: Iterable[Any] = loader
        self._function: Callable[[Any], Feed] = function
        self._limit = limit

    def __iter__(self) -> Iterator[Feed]:
        for number, item in enumerate(self._loader):
            if self._limit is not None and number >= self._limit:
                return
            yield self._function(item)


def sample_path(samples: Samples | None, stack: ExitStack) -> str | None:
    """The path of samples. Temporary files are removed when `stack` is closed."""
    if samples is None:
        return None
    if isinstance(samples, (str, os.PathLike)):
        return os.fspath(samples)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pare-samples-")))
    return str(_write(_feeds(samples), folder))


def _feeds(samples: Feed | Iterable[Feed] | DataReader) -> Iterator[Feed]:
    if isinstance(samples, Mapping):
        return iter([samples])
    if isinstance(samples, DataReader):
        rewind = getattr(samples, "rewind", None)
        if callable(rewind):
            try:
                rewind()
            except NotImplementedError:
                pass
        return iter(samples.get_next, None)
    if isinstance(samples, Iterable):
        return iter(samples)
    raise TypeError(f"samples are a path, arrays by name, or an iterable of them, not {type(samples).__name__}")


def _arrays(feed: object) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(feed, Mapping):
        raise TypeError(f"a batch is a dictionary of arrays by input, not {type(feed).__name__}")
    if not feed:
        raise PareError("a batch has no arrays")
    return {str(name): _array(value) for name, value in feed.items()}


def _array(value: Any) -> npt.NDArray[Any]:
    # Tensors of torch on other devices, or with gradients, are no arrays.
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
    return np.asarray(value)


def _write(feeds: Iterator[Feed], folder: Path) -> Path:
    """Writes batches to files, and returns their path."""
    stacked = _Stacked(folder)
    for number, feed in enumerate(feeds):
        arrays = _arrays(feed)
        if not stacked.add(arrays):
            return _write_sets(stacked, number, arrays, feeds, folder / "sets")
    if stacked.batches == 0:
        raise PareError("there are no samples")
    return stacked.finish()


class _Stacked:
    """Arrays that are joined along their first axis, each in a file of its own until all are complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self.rows: list[int] = []

    @property
    def batches(self) -> int:
        return len(self.rows)

    def add(self, arrays: dict[str, npt.NDArray[Any]]) -> bool:
        """Adds a batch. Returns false if it cannot be joined with the batches before."""
        if any(array.ndim == 0 or array.dtype.hasobject or array.dtype.kind in "US" for array in arrays.values()):
            return False
        rows = {len(array) for array in arrays.values()}
        shapes = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if len(rows) != 1 or (self._shapes and shapes != self._shapes):
            return False
        for number, (name, array) in enumerate(arrays.items()):
            path = self._files.setdefault(name, self._folder / f"{number}.bin")
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(array).data if array.size else b"")
        self._shapes = shapes
        self.rows.append(rows.pop())
        return True

    def feeds(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The batches again, read from the files."""
        start = 0
        for rows in self.rows:
            feed = {}
            for name, (dtype, shape) in self._shapes.items():
                size = int(np.prod(shape, dtype=np.int64))
                offset = start * size * dtype.itemsize
                data = np.fromfile(self._files[name], dtype, rows * size, offset=offset)
                feed[name] = data.reshape(rows, *shape)
            yield feed
            start += rows

    def finish(self) -> Path:
        """Joins the files to a `.npz`, and returns its path."""
        path = self._folder / "samples.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, (dtype, shape) in self._shapes.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as to, self._files[name].open("rb") as file:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (sum(self.rows), *shape),
                    }
                    np.lib.format.write_array_header_1_0(to, header)
                    _copy(file, to)
                self._files[name].unlink()
        return path


def _copy(file: IO[bytes], to: IO[bytes]) -> None:
    while data := file.read(1 << 20):
        to.write(data)


def _write_sets(
    stacked: _Stacked, count: int, arrays: dict[str, npt.NDArray[Any]], rest: Iterator[Feed], folder: Path
) -> Path:
    """Writes each batch as ONNX test data: first those that were joined before, then the others."""

    def all_feeds() -> Iterator[dict[str, npt.NDArray[Any]]]:
        yield from stacked.feeds()
        yield arrays
        for feed in rest:
            yield _arrays(feed)

    del count
    for number, feed in enumerate(all_feeds()):
        if "labels" in feed:
            raise PareError(
                "samples with `labels` need arrays of equal shapes",
                "pad the samples to one shape",
            )
        target = folder / f"test_data_set_{number}"
        target.mkdir(parents=True)
        for index, (name, array) in enumerate(feed.items()):
            (target / f"input_{index}.pb").write_bytes(tensor_bytes(name, array))
    return folder


# The numbers of element types in `onnx.TensorProto.DataType`, by numpy's names.
_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "complex64": 14, "complex128": 15, "bfloat16": 16,
}  # fmt: skip
_STRING = 8


def tensor_bytes(name: str, array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of an `onnx.TensorProto`.

    Fields: `dims` = 1 (packed), `data_type` = 2, `string_data` = 6, `name` = 8, `raw_data` = 9.
    """
    is_text = array.dtype.hasobject or array.dtype.kind in "US"
    number = _STRING if is_text else _TYPES.get(array.dtype.name)
    if number is None:
        raise PareError(f"array `{name}` has the type {array.dtype}, which ONNX does not have")
    data = _field(1, b"".join(_varint(size) for size in array.shape)) if array.shape else b""
    data += _varint(2 << 3) + _varint(number)
    if is_text:
        for item in array.ravel():
            data += _field(6, item if isinstance(item, bytes) else str(item).encode())
        return data + _field(8, name.encode())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return data + _field(8, name.encode()) + _field(9, np.ascontiguousarray(little).tobytes())


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    data.append(number)
    return bytes(data)


def _field(number: int, data: bytes) -> bytes:
    """A field of variable length."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data
