from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnx_pare
import pytest
from onnx.numpy_helper import to_array
from onnx_pare import PareError
from onnx_pare._samples import sample_path, tensor_bytes

from .conftest import LINEAR, model_of


def count(samples: onnx_pare.Samples, model: onnx.ModelProto) -> int:
    return onnx_pare.verify(model, model, samples=samples).report["samples"]


@pytest.fixture
def linear() -> onnx.ModelProto:
    return model_of(LINEAR)


class Reader:
    """A `CalibrationDataReader` by its methods."""

    def __init__(self, batches: int) -> None:
        self.batches, self.at = batches, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.at += 1
        return {"x": np.full((2, 4), self.at, np.float32)} if self.at <= self.batches else None

    def rewind(self) -> None:
        self.at = 0


def test_samples_of_all_kinds(linear: onnx.ModelProto, tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.savez(tmp_path / "x.npz", x=x)
    assert count(tmp_path / "x.npz", linear) == 6
    assert count({"x": x}, linear) == 6
    assert count([{"x": x}, {"x": x[:2]}], linear) == 8
    reader = Reader(5)
    assert count(reader, linear) == 10 and count(reader, linear) == 10

    class CalibrationReader(Reader):
        def rewind(self) -> None:
            raise NotImplementedError

    assert count(CalibrationReader(3), linear) == 6
    loader = [(x, [0] * 6), (x, [1] * 6)]
    assert count(onnx_pare.batches(loader, lambda item: {"x": item[0]}), linear) == 12
    assert count(onnx_pare.batches(loader, lambda item: {"x": item[0]}, limit=1), linear) == 6


def test_values_and_labels_are_those_given(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(6, 2)
    feeds = [{"x": x[:4], "labels": np.arange(4)}, {"x": x[4:], "labels": np.arange(4, 6)}]
    with ExitStack() as stack:
        path = sample_path(feeds, stack)
        assert path is not None and path.endswith(".npz")
        data = np.load(path)
        assert np.array_equal(data["x"], x) and data["labels"].tolist() == [0, 1, 2, 3, 4, 5]
        # A transposed array is written in its order of elements.
        path = sample_path({"x": x.T}, stack)
        assert path is not None and np.array_equal(np.load(path)["x"], x.T)
    assert not Path(path).exists()


def test_batches_of_other_shapes_are_samples_of_their_own(tmp_path: Path) -> None:
    model = model_of("g (float[N,T] x, float scale) => (float[N,T] y) { y = Mul(x, scale) }")
    feeds = [{"x": np.ones((1, n), np.float32), "scale": np.float32(n)} for n in (3, 5, 5)]
    assert count(feeds, model) == 3
    with ExitStack() as stack:
        same, other = np.ones((2, 3), np.float32), np.zeros((1, 4), np.float32)
        path = sample_path([{"x": same}, {"x": 2 * same}, {"x": other}], stack)
        assert path is not None
        sets = sorted(Path(path).iterdir())
        assert [folder.name for folder in sets] == [f"test_data_set_{i}" for i in range(3)]
        stored = [to_array(onnx.load_tensor(folder / "input_0.pb")) for folder in sets]
        assert np.array_equal(stored[1], 2 * same) and np.array_equal(stored[2], other)
        with pytest.raises(PareError, match="need arrays of equal shapes"):
            sample_path([{"x": same, "labels": [0, 1]}, {"x": other, "labels": [0]}], stack)


def test_at_most_one_batch_is_in_memory(linear: onnx.ModelProto) -> None:
    alive: list[int] = []

    class Array(np.ndarray):
        def __del__(self) -> None:
            if self.base is None or not isinstance(self.base, Array):
                alive.append(-1)

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(50):
            alive.append(1)
            assert sum(alive) <= 3
            yield {"x": np.zeros((64, 4), np.float32).view(Array)}

    assert count(stream(), linear) == 3200


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", "uint64", "complex64"]
)
def test_tensors_are_encoded_as_onnx_does(dtype: str) -> None:
    array = np.arange(300).reshape(3, 100).astype(dtype)
    tensor = onnx.TensorProto.FromString(tensor_bytes("näme", array))
    assert tensor.name == "näme" and np.array_equal(to_array(tensor), array)
    assert to_array(onnx.TensorProto.FromString(tensor_bytes("s", array[0, 1]))).shape == ()


def test_text_is_encoded() -> None:
    tensor = onnx.TensorProto.FromString(tensor_bytes("t", np.array(["a", "ü"], object)))
    assert to_array(tensor).tolist() == ["a", "ü"]


def test_samples_that_do_not_fit_are_errors(linear: onnx.ModelProto) -> None:
    with pytest.raises(PareError, match="there are no samples"):
        count([], linear)
    with pytest.raises(PareError, match="has no array for input `x`"):
        count({"y": np.zeros((2, 4), np.float32)}, linear)
    with pytest.raises(TypeError, match="a batch is a dictionary of arrays by input, not ndarray"):
        count([np.zeros(3)], linear)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not int"):
        count(3, linear)  # type: ignore[arg-type]
    with pytest.raises(PareError, match="a batch has no arrays"):
        count({}, linear)


def test_a_torch_loader() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.ones(10, 4, requires_grad=True))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    assert count(onnx_pare.batches(loader, lambda item: {"x": item[0]}), model_of(LINEAR)) == 10
