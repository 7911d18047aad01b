"""The functions of the package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from . import _native
from ._errors import PareError, Rejected
from ._models import M, Model, native, parse, serialize
from ._progress import Host, Progress, logger
from ._reports import CalibrationReport, Effect, Inspection, Measure, ModelDiff, PassInfo
from ._results import Benchmark, Metric, Result, SearchResult, Verification
from ._runtime import adopt, package
from ._samples import Samples, sample_path

if TYPE_CHECKING:
    import onnx

Transform: TypeAlias = "Callable[[onnx.ModelProto], onnx.ModelProto | None]"
"""A function that returns another model, or changes the one that it gets and returns None."""

Path_: TypeAlias = Union[str, "os.PathLike[str]"]
EvaluateWith = Literal["session", "bytes", "path"]


@dataclass(frozen=True)
class FunctionStep:
    """A function as a step of a pipeline; see `step`."""

    function: Transform
    effect: Effect
    name: str


def step(function: Transform, *, effect: Effect = "rounding", name: str | None = None) -> FunctionStep:
    """A function as a step of a pipeline, between passes.

    Args:
        function: Returns another `onnx.ModelProto`, or changes the one that it gets and returns None.
        effect: Its promise: `exact` and `rounding` for equal outputs up to rounding, which the proof checks, or `lossy`
            for outputs that only limits are applied to.
        name: Its name in reports; that of the function if not given.

    Example:
        `optimize(model, passes=["safe", step(my_pass, effect="lossy"), "safe"])`
    """
    return FunctionStep(function, effect, name or _name_of(function))


def _name_of(function: object) -> str:
    found = getattr(function, "__name__", type(function).__name__)
    return re.sub(r"\W+", "-", str(found)).strip("-") or "function"


Step: TypeAlias = "str | FunctionStep | Transform"
Passes: TypeAlias = "Step | Iterable[Step]"
"""A pipeline in text form, such as `safe,prune-channels{macs=0.5}`, or a list of pipelines and functions."""


def _steps(passes: Passes, like: object) -> list[str | tuple[str, str, _native._Transform]]:
    if isinstance(passes, str):
        return [passes]
    if callable(passes) or isinstance(passes, FunctionStep):
        passes = [passes]
    steps: list[str | tuple[str, str, _native._Transform]] = []
    for given in passes:
        if isinstance(given, str):
            steps.append(given)
            continue
        function = given if isinstance(given, FunctionStep) else step(given)
        steps.append((function.name, function.effect, _transform(function.function, like)))
    return steps


def _transform(function: Transform, like: object) -> _native._Transform:
    def transform(model: bytes, /) -> bytes | None:
        proto = parse(model, like)
        before = serialize(proto)
        result = function(proto)
        after = serialize(proto if result is None else result)
        return None if after == before else after

    return transform


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)B?\s*", size.upper())
    if found is None:
        raise PareError(f"`{size}` is not a number of bytes", "write a number, optionally with K, M or G")
    return int(float(found[1]) * _UNITS[found[2]])


def _environment(
    engine: str, library: Path_ | None, custom_ops: Sequence[Path_], provider: str, threads: int, seed: int
) -> dict[str, Any]:
    path = None if library is None else os.fspath(library)
    adopt(path)
    return {
        "engine": engine,
        "library": path,
        "custom_ops": [os.fspath(operators) for operators in custom_ops],
        "provider": provider,
        "threads": threads,
        "seed": seed,
    }


def _paths(paths: Path_ | Iterable[Path_]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        return [os.fspath(paths)]
    return [os.fspath(path) for path in paths]


def _measure(evaluate: Callable[[Any], float], how: EvaluateWith) -> Callable[[Path_], float]:
    """The metric as a function of the path of a model."""
    if how not in ("session", "bytes", "path"):
        raise PareError(f"`evaluate_with` is `session`, `bytes` or `path`, not `{how}`")

    def measure(path: Path_, /) -> float:
        if how == "path":
            return float(evaluate(os.fspath(path)))
        if how == "bytes":
            return float(evaluate(Path(path).read_bytes()))
        return float(evaluate(_session(os.fspath(path))))

    return measure


def _session(model: str | bytes) -> Any:
    return package().InferenceSession(model, providers=["CPUExecutionProvider"])


def _metric(
    evaluate: Callable[[Any], float], how: EvaluateWith, original: str | bytes, optimized: _native.Optimized, folder: Path
) -> Metric:
    """The metric of the original and of the result."""
    measure = _measure(evaluate, how)
    if isinstance(original, bytes):
        (folder / "original.onnx").write_bytes(original)
        original = str(folder / "original.onnx")
    result = folder / "result.onnx"
    optimized.write(result)
    return Metric(measure(original), measure(result))


def _warn(result: Result[M] | SearchResult[M], hints: list[str]) -> None:
    """Logs the effects of a run that the caller may not want."""
    report = result._optimize
    proof, latency = report["proof"], report["latency"]
    if proof is not None and proof["outcome"] == "unproven" and result.changed:
        logger.warning("the result is not proven: %s; `samples=` compares on samples of your own", proof["why"])
    if latency is not None and latency["slower"]:
        reasons = "".join(f": {reason}" for reason in latency["reasons"][:1])
        logger.warning("the result is slower, %.2f of the original's speed%s", latency["speed"]["median"], reasons)
    for hint in hints:
        logger.info("hint: %s", hint)


def optimize(
    model: M,
    output: Path_ | None = None,
    *,
    passes: Passes = "safe",
    samples: Samples | None = None,
    teacher: Path_ | None = None,
    test: Samples | None = None,
    hold_out: float | None = None,
    statistics: Path_ | Sequence[Path_] = (),
    evaluate: Callable[[Any], float] | None = None,
    evaluate_with: EvaluateWith = "session",
    max_metric_drop: float | None = None,
    max_deviation: float | None = None,
    min_agreement: float | None = None,
    max_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    prove: bool | Literal["each"] = True,
    prove_time: float = 20.0,
    quality: Mapping[str, Measure] | None = None,
    mask: str | None = None,
    time: bool = True,
    batch: int = 1,
    freeze_initializers: bool = False,
    stop_after: int | None = None,
    memory: int | str = "2G",
    external_data: Literal["keep", "embed", "one", "each"] = "keep",
    details: bool = False,
    progress: Progress = None,
    engine: Literal["auto", "ort", "tract"] = "auto",
    library: Path_ | None = None,
    custom_ops: Sequence[Path_] = (),
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> Result[M]:
    """Runs a pipeline of passes over a model, and returns the result if it keeps what the passes promise.

    The original and the result are run on the same samples. Passes that promise equality must keep every output, up to
    the rounding noise of the original itself; others must keep the limits.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        output: The path to write the result to.
        passes: A pipeline, such as `safe,prune-channels{macs=0.5}`, or a list of pipelines and functions from
            `onnx.ModelProto` to `onnx.ModelProto` (see `step`). `passes()` returns all passes.
        samples: Samples for calibration and comparison: a path, a dictionary of arrays by input, an iterable of such,
            or a `CalibrationDataReader`; `batches` makes some of a `DataLoader`. Generated if not given.
        teacher: The model whose outputs `distill` aims at, if it is not the model itself.
        test: Samples for the comparison only, optionally with `labels`.
        hold_out: Share of the samples, those at their end, that is used for the comparison and not for calibration.
        statistics: Files written by `calibrate`, instead of samples.
        evaluate: The caller's measure of quality: a function that returns a number, the higher the better.
        evaluate_with: The argument of `evaluate`: an `onnxruntime.InferenceSession` (`session`), the bytes of the model
            file, or its path.
        max_metric_drop: Largest drop of what `evaluate` returns.
        max_deviation: Largest difference of an output, relative to its largest value.
        min_agreement: Smallest share of samples that keep their class; of embeddings, smallest rank correlation of
            cosines.
        max_accuracy_drop: Largest drop of accuracy on labelled samples.
        max_disagreement: Largest share of all inputs that change class, with 95 % confidence.
        prove: False to return the result without running both models; `each` to compare the models before and after
            each pass, too.
        prove_time: Seconds after which a comparison on `samples` ends. With limits, and on `test`, all samples are compared.
        quality: Measures of outputs: `classes`, `cosine`, `error`, `exact` or `ignore`; chosen if not given.
        mask: The input whose zeros mark padding; found if not given.
        time: Measure the latency of both models.
        batch: Samples per run that is measured.
        freeze_initializers: Treat initializers that are also inputs as constants.
        stop_after: Number of patches to apply at most, to find the one at fault.
        memory: Bytes for activations of samples, such as `2G`.
        external_data: Weights of the output: as in the input, embedded, in one file beside it, or each in its own.
        details: Compare layers, tensors and samples too, for the page.
        progress: Show a bar, or a function `(stage, done, total)`. Shown in terminals and notebooks if not given.
        engine: The engine that runs models.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load; they run with your rights.
        provider: The execution provider that deployed models run on, such as `cuda` or `openvino,device_type=GPU`.
        threads: Threads; 0 means one per core.
        seed: Seed of every random choice.

    Raises:
        Rejected: The result does not keep a promise or a limit.
        PareError: Options, files or the engine do not allow the run.
        KeyboardInterrupt: Ctrl-C; a second one ends at once.
    """
    if output is not None:
        _native.check_output(output)
    if (evaluate is None) != (max_metric_drop is None):
        raise PareError("`evaluate` and `max_metric_drop` belong together")
    source = native(model)
    with ExitStack() as stack:
        host = stack.enter_context(Host(progress))
        scratch = None if output is None else str(Path(output).parent)
        options = {
            "samples": sample_path(samples, stack),
            "teacher": None if teacher is None else str(teacher),
            "test": sample_path(test, stack),
            "hold_out": hold_out,
            "statistics": _paths(statistics),
            "prove": "nothing" if prove is False else "result" if prove is True else prove,
            "prove_time": prove_time,
            "limits": {
                "max_deviation": max_deviation,
                "min_agreement": min_agreement,
                "max_accuracy_drop": max_accuracy_drop,
                "max_disagreement": max_disagreement,
            },
            "quality": {"measures": dict(quality or {}), "mask": mask},
            "time": time,
            "batch": batch,
            "freeze_initializers": freeze_initializers,
            "stop_after": stop_after,
            "memory": _bytes(memory),
            "details": details,
            "external_data": external_data,
            "scratch": scratch,
            "environment": _environment(engine, library, custom_ops, provider, threads, seed),
        }
        optimized = _native.optimize(source, _steps(passes, model), json.dumps(options), host)
        metric = None
        if evaluate is not None and max_metric_drop is not None:
            metric = _metric(evaluate, evaluate_with, source, optimized, _temporary(stack))
            if not metric.drop <= max_metric_drop:
                message = f"the metric drops from {metric.before:g} to {metric.after:g}, by more than {max_metric_drop:g}"
                raise Rejected(message, None, optimized.json())
    del source
    result = Result(optimized, model, None if output is None else os.fspath(output), metric)
    _warn(result, optimized.hints)
    return result


def _temporary(stack: ExitStack) -> Path:
    import tempfile

    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pare-")))


def search(
    model: M,
    output: Path_ | None = None,
    *,
    samples: Samples,
    test: Samples | None = None,
    hold_out: float = 0.25,
    goal: Literal["latency", "bytes", "macs"] = "latency",
    max_accuracy_drop: float | None = None,
    min_agreement: float | None = None,
    max_drift: float | None = None,
    evaluate: Callable[[Any], float] | None = None,
    evaluate_with: EvaluateWith = "session",
    max_metric_drop: float | None = None,
    confidence: float = 0.5,
    budget: float = 1200.0,
    families: Sequence[str] = (),
    batch: int = 1,
    quality: Mapping[str, Measure] | None = None,
    mask: str | None = None,
    freeze_initializers: bool = False,
    memory: int | str = "2G",
    external_data: Literal["keep", "embed", "one", "each"] = "keep",
    details: bool = False,
    front: Path_ | None = None,
    resume: bool = True,
    progress: Progress = None,
    engine: Literal["auto", "ort", "tract"] = "auto",
    library: Path_ | None = None,
    custom_ops: Sequence[Path_] = (),
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> SearchResult[M]:
    """Searches for the fastest or smallest model within limits on the loss of quality.

    It ends after `budget` seconds, when no improvement is expected any more, or at the first Ctrl-C: the result is the
    best so far, and `report["end"]` is `cancelled`. A second Ctrl-C raises `KeyboardInterrupt`.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        output: The path to write the result to.
        samples: Samples for calibration; see `optimize`.
        test: Samples that candidates are judged on, optionally with `labels`; never used for calibration.
        hold_out: Share of the samples that candidates are judged on if there is no `test`.
        goal: The quantity that is minimised.
        max_accuracy_drop: Largest drop of accuracy on labelled samples.
        min_agreement: Smallest share of samples that keep their class.
        max_drift: Largest drift: of other outputs the squared error over the variance.
        evaluate: The caller's measure of quality: a function that returns a number, the higher the better.
        evaluate_with: The argument of `evaluate`, as for `optimize`.
        max_metric_drop: Largest drop of what `evaluate` returns.
        confidence: Least probability that the limits hold for other samples.
        budget: Seconds for the search and its result.
        families: The families of passes to use; all if not given.
        batch: Samples per run when latency is measured.
        quality: Measures of outputs, as for `optimize`.
        mask: The input whose zeros mark padding; found if not given.
        freeze_initializers: Treat initializers that are also inputs as constants.
        memory: Bytes for activations of samples.
        external_data: Weights of the output, as for `optimize`.
        details: Compare layers, tensors and samples of the result too, for the page.
        front: A folder for all models of the Pareto front.
        resume: Use the trials of earlier searches; never done with `evaluate`, which may have changed.
        progress: As for `optimize`.
        engine: The engine that runs models.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load.
        provider: The execution provider that deployed models run on, such as `cuda` or `openvino,device_type=GPU`.
        threads: Threads of latencies; 0 means one.
        seed: Seed of every random choice.
    """
    if output is not None:
        _native.check_output(output)
    with ExitStack() as stack:
        host = stack.enter_context(Host(progress))
        options = {
            "goal": goal,
            "samples": sample_path(samples, stack),
            "test": sample_path(test, stack),
            "hold_out": hold_out,
            "max_accuracy_drop": max_accuracy_drop,
            "min_agreement": min_agreement,
            "max_drift": max_drift,
            "max_metric_drop": max_metric_drop,
            "confidence": confidence,
            "budget": budget,
            "families": list(families),
            "batch": batch,
            "quality": {"measures": dict(quality or {}), "mask": mask},
            "freeze_initializers": freeze_initializers,
            "memory": _bytes(memory),
            "details": details,
            "external_data": external_data,
            "front": None if front is None else os.fspath(front),
            "resume": resume and evaluate is None,
            "scratch": None if output is None else str(Path(output).parent),
            "environment": _environment(engine, library, custom_ops, provider, threads, seed),
        }
        metric = None if evaluate is None else _measure(evaluate, evaluate_with)
        optimized = _native.search(native(model), json.dumps(options), metric, host)
    result = SearchResult(optimized, model, None if output is None else os.fspath(output))
    _warn(result, optimized.hints)
    return result


def verify(
    reference: Model,
    candidate: Model,
    *,
    samples: Samples | None = None,
    max_deviation: float | None = None,
    min_agreement: float | None = None,
    max_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    measures: Mapping[str, float] | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    quality: Mapping[str, Measure] | None = None,
    mask: str | None = None,
    steps: int = 1,
    state: Mapping[str, str] | None = None,
    layers: bool = False,
    memory: int | str = "2G",
    progress: Progress = None,
    engine: Literal["auto", "ort", "tract"] = "auto",
    library: Path_ | None = None,
    custom_ops: Sequence[Path_] = (),
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> Verification:
    """Compares two models by running both on the same samples.

    Without limits the outputs must be equal up to the rounding noise of the reference.

    Args:
        reference: The model to compare with.
        candidate: The model to compare.
        samples: Samples to compare on; see `optimize`. Generated if not given.
        max_deviation: Largest difference of an output, relative to its largest value.
        min_agreement: Smallest share of samples that keep their class.
        max_accuracy_drop: Largest drop of accuracy on labelled samples.
        max_disagreement: Largest share of all inputs that change class, with 95 % confidence.
        measures: Limits of measures that hold for every output, such as `{"cosine": 0.999}`: upper limits of `max-abs`,
            `max-rel`, `rmse`, `kl`; lower limits of `cosine`, `snr` (dB), `agreement`.
        tolerance: Absolute difference that is accepted, in all outputs or by output.
        quality: Measures of outputs, as for `optimize`.
        mask: The input whose zeros mark padding; found if not given.
        steps: Runs of each sample, each with the state that the previous one computed.
        state: Inputs that receive the state, with the outputs that compute it; found if not given.
        layers: Compare every tensor that both models compute under the same name.
        memory: Bytes for the tensors of `layers`.
        progress: As for `optimize`.
        engine: The engine that runs models.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load.
        provider: The execution provider that deployed models run on, such as `cuda` or `openvino,device_type=GPU`.
        threads: Threads; 0 means one per core.
        seed: Seed of every random choice.

    Returns:
        The verdict; true if the models agree.
    """
    if tolerance is None:
        tolerance = {}
    elif not isinstance(tolerance, Mapping):
        tolerance = {"": tolerance}
    with ExitStack() as stack:
        host = stack.enter_context(Host(progress))
        options = {
            "samples": sample_path(samples, stack),
            "limits": {
                "max_deviation": max_deviation,
                "min_agreement": min_agreement,
                "max_accuracy_drop": max_accuracy_drop,
                "max_disagreement": max_disagreement,
            },
            "measures": dict(measures or {}),
            "quality": {"measures": dict(quality or {}), "mask": mask},
            "tolerance": dict(tolerance),
            "steps": steps,
            "state": dict(state or {}),
            "layers": layers,
            "memory": _bytes(memory),
            "environment": _environment(engine, library, custom_ops, provider, threads, seed),
        }
        return Verification(_native.verify(native(reference), native(candidate), json.dumps(options), host))


def bench(
    *models: Model,
    samples: Samples | None = None,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    rounds: int = 30,
    min_time: float = 3.0,
    optimizations: Literal["off", "basic", "extended", "all"] = "all",
    progress: Progress = None,
    engine: Literal["auto", "ort", "tract"] = "auto",
    library: Path_ | None = None,
    custom_ops: Sequence[Path_] = (),
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> Benchmark:
    """Measures the latency of models in interleaved rounds; ratios are to the first.

    Args:
        models: The models.
        samples: Inputs to run on; see `optimize`. Generated if not given.
        batch: Samples per run, where the models leave it open.
        dims: Sizes of symbolic dimensions of generated inputs.
        rounds: Rounds at least.
        min_time: Seconds to measure at least.
        optimizations: Graph optimizations of ONNX Runtime.
        progress: As for `optimize`.
        engine: The engine that runs models.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load.
        provider: The execution provider that deployed models run on, such as `cuda` or `openvino,device_type=GPU`.
        threads: Threads; 0 means one.
        seed: Seed of generated inputs.
    """
    with ExitStack() as stack:
        host = stack.enter_context(Host(progress))
        options = {
            "samples": sample_path(samples, stack),
            "batch": batch,
            "dims": dict(dims or {}),
            "rounds": rounds,
            "min_time": min_time,
            "optimizations": optimizations,
            "environment": _environment(engine, library, custom_ops, provider, threads, seed),
        }
        return Benchmark(_native.bench([native(model) for model in models], json.dumps(options), host))


def calibrate(
    model: Model,
    output: Path_,
    *,
    samples: Samples,
    passes: str = "safe",
    merge: Path_ | Sequence[Path_] = (),
    positions: int = 32,
    memory: int | str = "2G",
    progress: Progress = None,
    engine: Literal["auto", "ort", "tract"] = "auto",
    library: Path_ | None = None,
    custom_ops: Sequence[Path_] = (),
    threads: int = 0,
    seed: int = 0,
) -> CalibrationReport:
    """Collects statistics of activations and writes them, for `optimize(..., statistics=output)`.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        output: The file to write, in the safetensors format.
        samples: Inputs to run; see `optimize`.
        passes: The pipeline that runs first: the passes before the one that uses the statistics.
        merge: Files of statistics to add, such as those of other parts of the samples.
        positions: Positions of each sample that are used.
        memory: Bytes for activations and sums.
        progress: As for `optimize`.
        engine: The engine that runs models.
        library: An ONNX Runtime library instead of that of the package `onnxruntime`.
        custom_ops: Libraries of custom operators to load.
        threads: Threads; 0 means one per core.
        seed: Seed of the choice of positions.
    """
    with ExitStack() as stack:
        host = stack.enter_context(Host(progress))
        options = {
            "samples": sample_path(samples, stack),
            "passes": passes,
            "merge": _paths(merge),
            "positions": positions,
            "memory": _bytes(memory),
            "environment": _environment(engine, library, custom_ops, "cpu", threads, seed),
        }
        report = _native.calibrate(native(model), os.fspath(output), json.dumps(options), host)
    return json.loads(report)  # type: ignore[no-any-return]


def quantize(
    model: M,
    output: Path_ | None = None,
    *,
    samples: Samples | None = None,
    method: Literal["static", "dynamic", "weights"] | None = None,
    purpose: Literal["speed", "size"] = "speed",
    ranges: Literal["minmax", "percentile", "mse"] = "mse",
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    **options: Any,
) -> Result[M]:
    """Stores weights, and with samples also activations, in eight bits: `optimize` with the pass `quantize`.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        output: The path to write the result to.
        samples: Samples for the ranges of activations and the comparison; see `optimize`.
        method: `static` takes the ranges of activations from samples, `dynamic` finds them in every run, `weights` stores
            weights only. Static if there are samples, otherwise weights.
        purpose: `speed` leaves what is not faster in integers in float, `size` quantizes everything.
        ranges: The choice of ranges: the least squared error (`mse`), `percentile` or `minmax`.
        only: Patterns of weights whose layers are quantized; all if not given.
        exclude: Patterns of weights whose layers are skipped.
        options: Further arguments of `optimize`, such as limits.
    """
    chosen = method or ("weights" if samples is None else "static")
    settings = [f"method={chosen}", f"for={purpose}", f"ranges={ranges}"]
    if samples is None:
        settings.append("correct_bias=false")
    for key, patterns in (("only", only), ("except", exclude)):
        if patterns:
            settings.append(f"{key}={json.dumps(list(patterns))}")
    passes = f"safe,quantize{{{','.join(settings)}}}"
    return optimize(model, output, samples=samples, passes=passes, **options)


def inspect(
    model: Model, *, dims: Mapping[str, int] | None = None, samples: Samples | None = None, layers: bool = False
) -> Inspection:
    """Returns operators, weights, multiply-accumulates and memory of a model.

    Args:
        model: A path, bytes, or an `onnx.ModelProto`.
        dims: Sizes of symbolic dimensions; 1 if neither these nor samples set them.
        samples: Samples whose sizes symbolic dimensions have.
        layers: List every node.
    """
    with ExitStack() as stack:
        host = stack.enter_context(Host(False))
        options = {"dims": dict(dims or {}), "samples": sample_path(samples, stack), "layers": layers}
        return json.loads(_native.inspect(native(model), json.dumps(options), host))  # type: ignore[no-any-return]


def text(model: Model) -> str:
    """Returns the graph of a model in ONNX textual syntax; long tensors are abbreviated."""
    return _native.model_text(native(model), Host(False))


def diff(before: Model, after: Model) -> ModelDiff:
    """Returns the differences of structure, weights and interface between two models, without running them."""
    return json.loads(_native.diff(native(before), native(after), Host(False)))  # type: ignore[no-any-return]


def passes() -> dict[str, PassInfo]:
    """Returns all passes and presets by name, with their documentation, promise and options."""
    listed: list[PassInfo] = json.loads(_native.passes())
    return {info["name"]: info for info in listed}
