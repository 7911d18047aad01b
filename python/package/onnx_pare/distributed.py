"""Calibration and evaluation on a cluster.

    from onnx_pare import distributed

    distributed.calibrate("model.onnx", dataset, "statistics.safetensors", engine="ray")
    onnx_pare.optimize("model.onnx", passes="safe,prune-channels{macs=0.5}", statistics="statistics.safetensors")

Statistics of samples add up. A worker folds one partition of the samples into a partial result, and partial results are
merged as a tree. What is computed depends on the model, the partitions and their order only: neither the number of
workers, nor the order in which they finish, nor workers that are lost and replaced change a bit of it.

Engines are `ray` (extra `onnx-pare[ray]`), `dask` (`onnx-pare[dask]`), and `local`, which is this process. Other engines
need three functions of this module: `prepare` once, `fold` for every partition, and `merge`; see the example of Spark in
the documentation of the package.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from . import _api, _native
from ._errors import PareError
from ._models import Model, native
from ._progress import Host
from ._reports import VerifyReport
from ._samples import Samples, sample_path

__all__ = ["DistributedReport", "Engine", "Partial", "calibrate", "evaluate", "fold", "merge", "prepare"]

EngineName = Literal["ray", "dask", "local"]

Feed = Callable[[Any], Samples]
"""Makes the samples of a partition: a dictionary of arrays by input, an iterable of such, or a path."""


@dataclass(frozen=True)
class Partial:
    """The statistics of some partitions.

    Attributes:
        partitions: Their numbers, in ascending order.
        samples: The number of samples in them.
        statistics: A file of statistics.
    """

    partitions: tuple[int, ...]
    samples: int
    statistics: bytes

    def write(self, output: str | os.PathLike[str], partitions: int | None = None) -> DistributedReport:
        """Writes the statistics, for `optimize(..., statistics=output)`.

        Args:
            output: The file to write.
            partitions: The number of partitions that there are; those that are missing are an error.
        """
        missing = set(range(partitions or 0)).difference(self.partitions)
        if missing:
            raise PareError(f"the statistics lack {len(missing)} of {partitions} partitions, such as {min(missing)}")
        _native.check_output(output)
        with tempfile.TemporaryDirectory(prefix="pare-") as folder:
            file = Path(folder, "all.safetensors")
            file.write_bytes(self.statistics)
            report = json.loads(_native.merge_statistics([str(file)], os.fspath(output), Host(False)))
        return {
            "operators": report["operators"],
            "samples": self.samples,
            "rows": report["rows"],
            "bytes": report["bytes"],
            "partitions": len(self.partitions),
        }


class DistributedReport(TypedDict):
    """The report of `calibrate`."""

    operators: int
    samples: int
    rows: int
    bytes: int
    partitions: int


def prepare(model: Model, passes: str = "safe") -> str | bytes:
    """The model that workers run: the pipeline of passes before the one that uses the statistics runs once, here.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        passes: The pipeline. Without one a path stays a path, which every worker then reads.
    """
    if not passes:
        return native(model)
    return _api.optimize(native(model), passes=passes, prove=False, time=False, progress=False).to_bytes()


def fold(
    model: str | bytes,
    number: int,
    partition: Any,
    *,
    feed: Feed | None = None,
    positions: int = 32,
    memory: int | str = "2G",
    threads: int = 1,
    seed: int = 0,
    library: str | None = None,
    custom_ops: Sequence[str] = (),
) -> Partial:
    """The statistics of one partition; runs in a worker.

    Args:
        model: What `prepare` returned.
        number: The number of the partition, from 0.
        partition: Its samples, as `optimize` takes them, or what `feed` makes samples of.
        feed: Makes samples of the partition.
        positions: Positions of each sample that are used; others in each partition.
        memory: Bytes for activations and sums.
        threads: Threads of the engine; the result may depend on their number in its last bits.
        seed: Seed of the choice of positions.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pare-"))
        file = Path(folder, "part.safetensors")
        options: dict[str, Any] = {
            "samples": sample_path(partition if feed is None else feed(partition), stack),
            "passes": "",
            "merge": [],
            "positions": positions,
            "memory": _api._bytes(memory),
            "environment": _api._environment("ort", library, custom_ops, "cpu", threads, seed + number),
        }
        report = json.loads(_native.calibrate(model, str(file), json.dumps(options), Host(False)))
        return Partial((number,), report["samples"], file.read_bytes())


def merge(*parts: Partial) -> Partial:
    """The statistics of all partitions of some partial results.

    Raises:
        PareError: A partition is in two of them, or they are of different models.
    """
    partitions = sorted(number for part in parts for number in part.partitions)
    for number, following in zip(partitions, partitions[1:]):
        if number == following:
            raise PareError(f"partition {number} is counted twice")
    if len(parts) == 1:
        return parts[0]
    with tempfile.TemporaryDirectory(prefix="pare-") as folder:
        files = [Path(folder, f"{index}.safetensors") for index in range(len(parts) + 1)]
        for file, part in zip(files, parts):
            file.write_bytes(part.statistics)
        _native.merge_statistics([str(file) for file in files[:-1]], str(files[-1]), Host(False))
        return Partial(tuple(partitions), sum(part.samples for part in parts), files[-1].read_bytes())


class Engine(Protocol):
    """Runs functions in workers, again where a worker is lost."""

    def partitions(self, dataset: Any) -> Iterable[Any]:
        """The partitions of a dataset, which stay where they are."""

    def share(self, value: Any) -> Any:
        """A handle of a value that many calls use."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A handle of the result of a call; handles among the arguments stand for their values."""

    def results(self, handles: list[Any]) -> list[Any]:
        """The values of handles."""


class _Local:
    """This process."""

    def partitions(self, dataset: Any) -> Iterable[Any]:
        return _iterated(dataset)

    def share(self, value: Any) -> Any:
        return value

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def results(self, handles: list[Any]) -> list[Any]:
        return handles


class _Ray:
    """Tasks of Ray, which runs those of lost workers again; lost results are computed again from their lineage."""

    def __init__(self, retries: int) -> None:
        import ray

        self._ray: Any = ray
        self._retries = retries
        self._remote: dict[Callable[..., Any], Any] = {}

    def partitions(self, dataset: Any) -> Iterable[Any]:
        if hasattr(dataset, "to_numpy_refs"):
            return list(dataset.to_numpy_refs())
        return _iterated(dataset)

    def share(self, value: Any) -> Any:
        return self._ray.put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(max_retries=self._retries)(function)
        return self._remote[function].remote(*arguments)

    def results(self, handles: list[Any]) -> list[Any]:
        return self._ray.get(handles)  # type: ignore[no-any-return]


class _Dask:
    """Delayed calls of Dask, in the cluster of the current client if there is one."""

    def __init__(self, retries: int) -> None:
        import dask

        self._dask: Any = dask
        self._retries = retries

    def partitions(self, dataset: Any) -> Iterable[Any]:
        if hasattr(dataset, "to_delayed"):
            found = dataset.to_delayed()
            return list(getattr(found, "flat", found))
        return _iterated(dataset)

    def share(self, value: Any) -> Any:
        return self._dask.delayed(value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._dask.delayed(function, pure=False)(*arguments)

    def results(self, handles: list[Any]) -> list[Any]:
        try:
            import distributed

            client: Any = distributed.get_client()  # type: ignore[no-untyped-call, unused-ignore]
        except (ImportError, ValueError):
            return list(self._dask.compute(*handles))
        return client.gather(client.compute(handles, retries=self._retries))  # type: ignore[no-any-return]


def _iterated(dataset: Any) -> Iterable[Any]:
    if isinstance(dataset, (str, os.PathLike, Mapping)):
        return [dataset]
    return dataset  # type: ignore[no-any-return]


def _engine(engine: EngineName | Engine, retries: int) -> Engine:
    if not isinstance(engine, str):
        return engine
    if engine == "local":
        return _Local()
    known: dict[str, Callable[[int], Engine]] = {"ray": _Ray, "dask": _Dask}
    if engine not in known:
        raise PareError(f"no engine is named `{engine}`: ray, dask, local")
    try:
        return known[engine](retries)
    except ImportError as error:
        raise PareError(f"{engine} is not installed", f"`pip install 'onnx-pare[{engine}]'` installs it") from error


def _tree(engine: Engine, leaves: Iterator[Any], width: int) -> Any:
    """Merges leaves, `width` at a time, in an order that depends on their number only.

    The partial results of one level are merged as soon as there are `width`, so that few of them exist at a time.
    """
    levels: list[list[Any]] = []
    for leaf in leaves:
        carried = leaf
        for level in levels:
            level.append(carried)
            if len(level) < width:
                break
            carried = engine.submit(merge, *level)
            level.clear()
        else:
            levels.append([carried])
    rest: list[Any] = []
    for level in levels:
        rest = level + rest
        if len(rest) > 1:
            rest = [engine.submit(merge, *rest)]
    if not rest:
        raise PareError("there are no samples")
    return rest[0]


def calibrate(
    model: Model,
    dataset: Any,
    output: str | os.PathLike[str],
    *,
    engine: EngineName | Engine,
    feed: Feed | None = None,
    passes: str = "safe",
    positions: int = 32,
    memory: int | str = "2G",
    width: int = 8,
    retries: int = 3,
    threads: int = 1,
    seed: int = 0,
    library: str | None = None,
    custom_ops: Sequence[str] = (),
) -> DistributedReport:
    """Collects statistics of activations on a cluster and writes them, for `optimize(..., statistics=output)`.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        dataset: The samples in partitions: a `ray.data.Dataset` (a partition is a block, as arrays by column), a Dask
            bag, data frame or series, or an iterable of partitions, such as the paths of files that every worker reads.
        output: The file to write, in the safetensors format.
        engine: `ray`, `dask`, `local` (this process), or an object with the methods of `Engine`.
        feed: A function that makes samples, as `optimize` takes them, of a partition, in the worker.
        passes: The pipeline that runs first, in this process: the passes before the one that uses the statistics.
        positions: Positions of each sample that are used.
        memory: Bytes for activations and sums in a worker.
        width: Partial results that are merged at a time.
        retries: How often the task of a lost worker runs again; Dask moves tasks of lost workers as the cluster is
            configured (`distributed.scheduler.allowed-failures`), and repeats failed ones as often as this says.
        threads: Threads of a task.
        seed: Seed of the choice of positions.
        library: An ONNX Runtime library in every worker instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load, in every worker.

    Raises:
        PareError: There are no samples, or a worker cannot run the model on its partition.
    """
    _native.check_output(output)
    on = _engine(engine, retries)
    shared = on.share(prepare(model, passes))
    options = {
        "feed": feed,
        "positions": positions,
        "memory": memory,
        "threads": threads,
        "seed": seed,
        "library": library,
        "custom_ops": tuple(custom_ops),
    }
    numbered = enumerate(on.partitions(dataset))
    count = 0

    def leaves() -> Iterator[Any]:
        nonlocal count
        for number, partition in numbered:
            count = number + 1
            yield on.submit(_fold, options, shared, number, partition)

    (total,) = on.results([_tree(on, leaves(), max(width, 2))])
    report: DistributedReport = total.write(output, count)
    return report


def _fold(options: dict[str, Any], model: str | bytes, number: int, partition: Any) -> Partial:
    return fold(model, number, partition, **options)


def evaluate(
    reference: Model,
    candidates: Sequence[Model],
    samples: Samples,
    *,
    engine: EngineName | Engine,
    retries: int = 3,
    **options: Any,
) -> list[VerifyReport]:
    """The reports of `verify` of several candidates, each in a worker.

    Args:
        reference: The original.
        candidates: The models that are compared with it.
        samples: Samples for all of them; a path is read by every worker.
        engine: As for `calibrate`.
        retries: How often the task of a lost worker runs again.
        options: Further arguments of `verify`, such as limits.
    """
    on = _engine(engine, retries)
    shared = [on.share(native(reference)), on.share(samples)]
    chosen = {"threads": 1, **options}
    return on.results([on.submit(_verify, chosen, *shared, native(candidate)) for candidate in candidates])


def _verify(options: dict[str, Any], reference: str | bytes, samples: Samples, candidate: str | bytes) -> VerifyReport:
    return _api.verify(reference, candidate, samples=samples, progress=False, **options).report
