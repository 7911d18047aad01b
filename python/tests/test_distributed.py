"""Statistics and evaluation on clusters of worker processes on this machine.

Tests of Ray and Dask are skipped where these are not installed:

    pip install 'onnx-pare[ray,dask,ort]' onnx pytest && python -m pytest python/tests/test_distributed.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import onnx_pare
from onnx_pare import _reports, distributed

Arrays = dict[str, npt.NDArray[Any]]

SAMPLES = 512
PARTITION = 64


def read(file: Path) -> Arrays:
    """The tensors of a file of statistics."""
    import json

    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    types = {"F64": np.float64, "U64": np.uint64}
    return {
        name: np.frombuffer(data[8 + size :][slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def distance(a: Arrays, b: Arrays) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    assert a.keys() == b.keys()
    return max(float(np.abs(x.astype(float) - b[name]).max() / np.abs(x).max()) for name, x in a.items())


@pytest.fixture(scope="module")
def images(calibration: Path) -> npt.NDArray[Any]:
    with np.load(calibration) as file:
        image: npt.NDArray[Any] = file["image"][:SAMPLES]
    return image


@pytest.fixture(scope="module")
def partitions(images: npt.NDArray[Any]) -> list[Arrays]:
    return [{"image": images[start : start + PARTITION]} for start in range(0, SAMPLES, PARTITION)]


@pytest.fixture(scope="module")
def alone(digits_path: Path, partitions: list[Arrays], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The statistics of one process."""
    file = tmp_path_factory.mktemp("alone") / "alone.safetensors"
    report = distributed.calibrate(digits_path, partitions, file, engine="local")
    assert (report["samples"], report["partitions"]) == (SAMPLES, SAMPLES // PARTITION)
    assert set(report) == set(distributed.DistributedReport.__annotations__)
    return file


def dying(marker: Path, images: npt.NDArray[Any]) -> Callable[[Any], Arrays]:
    """A function that makes samples of a partition, and ends its process when it first sees the one in the middle."""
    middle = images[SAMPLES // 2].tobytes()

    def feed(partition: Mapping[str, Any]) -> Arrays:
        image = np.asarray(partition["image"])
        if image[0].tobytes() == middle and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": image}

    return feed


def test_one_partition_is_what_one_call_collects(
    digits: onnx.ModelProto, images: npt.NDArray[Any], alone: Path, tmp_path: Path
) -> None:
    one, call = tmp_path / "one.safetensors", tmp_path / "call.safetensors"
    distributed.calibrate(digits, {"image": images}, one, engine="local")
    onnx_pare.calibrate(digits, call, samples={"image": images}, threads=1)
    assert one.read_bytes() == call.read_bytes()
    # Other partitions draw other positions of the same images.
    counts, others = read(alone), read(one)
    assert all(np.array_equal(counts[name], others[name]) for name in counts if name.endswith("/count"))


def test_the_order_of_merging_does_not_matter(
    digits: onnx.ModelProto, partitions: list[Arrays], alone: Path, tmp_path: Path
) -> None:
    model = distributed.prepare(digits)
    parts = [distributed.fold(model, number, partition) for number, partition in enumerate(partitions)]
    for width in (2, 3, 16):
        file = tmp_path / f"{width}.safetensors"
        distributed.calibrate(digits, iter(partitions), file, engine="local", width=width)
        assert distance(read(alone), read(file)) <= 1e-12
    chain = parts[-1]
    for part in reversed(parts[:-1]):
        chain = distributed.merge(part, chain)
    chain.write(tmp_path / "chain.safetensors", len(parts))
    assert chain.samples == SAMPLES and distance(read(alone), read(tmp_path / "chain.safetensors")) <= 1e-12


def test_no_partition_is_counted_twice_or_lost(digits: onnx.ModelProto, partitions: list[Arrays], tmp_path: Path) -> None:
    model = distributed.prepare(digits)
    first, second = (distributed.fold(model, number, partitions[number]) for number in (0, 1))
    both = distributed.merge(first, second)
    assert (both.partitions, both.samples) == ((0, 1), 2 * PARTITION)
    with pytest.raises(onnx_pare.PareError, match="partition 1 is counted twice"):
        distributed.merge(both, second)
    with pytest.raises(onnx_pare.PareError, match="lack 1 of 3 partitions, such as 2"):
        both.write(tmp_path / "s.safetensors", 3)
    assert not (tmp_path / "s.safetensors").exists()


def test_errors_are_those_of_the_library(digits: onnx.ModelProto, partitions: list[Arrays], tmp_path: Path) -> None:
    output = tmp_path / "s.safetensors"
    with pytest.raises(onnx_pare.PareError, match="there are no samples"):
        distributed.calibrate(digits, [], output, engine="local")
    with pytest.raises(onnx_pare.PareError, match="no engine is named `spark`: ray, dask, local"):
        distributed.calibrate(digits, partitions, output, engine="spark")  # type: ignore[arg-type]
    with pytest.raises(onnx_pare.PareError, match="`image`"):
        distributed.calibrate(digits, [{"other": partitions[0]["image"]}], output, engine="local")


def test_candidates_are_evaluated_in_order(digits: onnx.ModelProto, test_samples: Path) -> None:
    small = onnx_pare.optimize(digits, time=False).to_bytes()
    reports = distributed.evaluate(digits, [small, digits], test_samples, engine="local", max_accuracy_drop=0.01)
    assert [report["verdict"] for report in reports] == ["agree", "agree"]
    assert set(reports[0]) <= set(_reports.VerifyReport.__annotations__)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_ray_survives_the_death_of_a_worker(
    ray_cluster: Any, digits: onnx.ModelProto, images: npt.NDArray[Any], alone: Path, tmp_path: Path
) -> None:
    from ray import data

    dataset = data.from_items([{"image": image} for image in images]).repartition(SAMPLES // PARTITION)
    marker, file = tmp_path / "died", tmp_path / "ray.safetensors"
    report = distributed.calibrate(digits, dataset, file, engine="ray", feed=dying(marker, images), width=3)
    assert marker.exists() and (report["samples"], report["partitions"]) == (SAMPLES, SAMPLES // PARTITION)
    assert distance(read(alone), read(file)) <= 1e-12


def test_ray_takes_files_that_workers_read(
    ray_cluster: Any, digits_path: Path, partitions: list[Arrays], alone: Path, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{number}.npz") for number in range(len(partitions))]
    for path, partition in zip(paths, partitions):
        np.savez(path, image=partition["image"])
    file = tmp_path / "ray.safetensors"
    distributed.calibrate(digits_path, paths, file, engine="ray")
    assert file.read_bytes() == alone.read_bytes()
    small = onnx_pare.optimize(digits_path, time=False).to_bytes()
    reports = distributed.evaluate(digits_path, [small, digits_path], paths[0], engine="ray")
    assert [report["verdict"] for report in reports] == ["agree", "agree"]


def test_dask_survives_the_death_of_a_worker(
    dask_cluster: Any, digits: onnx.ModelProto, images: npt.NDArray[Any], alone: Path, tmp_path: Path
) -> None:
    from dask import bag as dask_bag

    bag: Any = dask_bag
    feed = dying(tmp_path / "died", images)
    dataset = bag.from_sequence(list(images), npartitions=SAMPLES // PARTITION)
    file = tmp_path / "dask.safetensors"
    report = distributed.calibrate(
        digits, dataset, file, engine="dask", feed=lambda items: feed({"image": np.stack(items)}), width=3
    )
    assert (tmp_path / "died").exists()
    assert (report["samples"], report["partitions"]) == (SAMPLES, SAMPLES // PARTITION)
    assert distance(read(alone), read(file)) <= 1e-12
    small = onnx_pare.optimize(digits, time=False).to_bytes()
    reports = distributed.evaluate(digits, [small, digits], {"image": images[:PARTITION]}, engine="dask")
    assert [report["verdict"] for report in reports] == ["agree", "agree"]
