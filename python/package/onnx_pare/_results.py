"""Results of operations: a report, and for some a model."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from . import _native
from ._errors import PareError
from ._models import M, is_path, is_proto, parse
from ._reports import BenchReport, OptimizeReport, SearchReport, VerifyReport

if TYPE_CHECKING:
    import onnx

R = TypeVar("R")


class Metric(NamedTuple):
    """The caller's measure of quality for the original and for the result; higher is better."""

    before: float
    after: float

    @property
    def drop(self) -> float:
        """The loss."""
        return self.before - self.after


class _Outcome(Generic[M, R]):
    """A model with its report."""

    report: R
    """The report, a dictionary; `cli/REPORTS.md` in the source describes its fields."""

    def __init__(
        self, native: _native.Optimized, original: M, output: str | None, metric: Metric | None = None
    ) -> None:
        self._native = native
        self._original = original
        self._output = output
        self._model: M | None = None
        self.metric = metric
        """What `evaluate` returned for the original and for the result, if it was given."""
        if output is not None:
            native.write(output)
        elif not is_path(original):
            self._model = self._convert(native.to_bytes())
        self.report = cast(R, json.loads(native.json()))

    def _convert(self, data: bytes) -> M:
        if is_proto(self._original):
            return cast(M, parse(data, self._original))
        if isinstance(self._original, bytearray):
            return cast(M, bytearray(data))
        if isinstance(self._original, memoryview):
            return cast(M, memoryview(data))
        return cast(M, data)

    @property
    def _optimize(self) -> OptimizeReport:
        raise NotImplementedError

    @property
    def model(self) -> M:
        """The result, of the kind that the original has: the path of the output, bytes, or an `onnx.ModelProto`."""
        if self._model is None and is_path(self._original):
            if self._output is None:
                raise PareError(
                    "the model was given by its path, and no path for the result",
                    "give `output=`, or use `to_bytes()`, `to_proto()` or `save(path)`",
                )
            return cast(M, self._output)
        if self._model is None:
            self._model = self._convert(self._native.to_bytes())
        return self._model

    @property
    def changed(self) -> bool:
        """True if the result differs from the original."""
        return self._native.changed

    @property
    def pipeline(self) -> str:
        """The pipeline in text form."""
        return self._optimize["pipeline"]

    @property
    def proven(self) -> bool:
        """True if an engine showed that the result equals the original up to rounding."""
        proof = self._optimize["proof"]
        return proof is not None and proof["outcome"] == "equal"

    @property
    def speed(self) -> float | None:
        """The time of the original over that of the result, if it was measured."""
        latency = self._optimize["latency"]
        return None if latency is None else latency["speed"]["median"]

    def to_bytes(self) -> bytes:
        """The result as the bytes of a model file."""
        return self._native.to_bytes()

    def to_proto(self) -> onnx.ModelProto:
        """The result as an `onnx.ModelProto`."""
        return parse(self.to_bytes(), self._original)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result, atomically; weights beyond 2 GiB are written into a file beside it."""
        _native.check_output(path)
        self._native.write(path)

    def _repr_html_(self) -> str:
        return _framed(self._native.html())

    def __repr__(self) -> str:
        before, after = self._optimize["before"], self._optimize["after"]
        proof = self._optimize["proof"]
        parts = [
            f"{name} {_count(old)} → {_count(new)}"
            for name, old, new in (
                ("nodes", before["nodes"], after["nodes"]),
                ("parameters", before["parameters"], after["parameters"]),
                ("macs", before["macs"], after["macs"]),
            )
        ]
        if self.speed is not None:
            parts.append(f"speed {self.speed:.2f}×")
        parts.append("not proven" if proof is None else proof["outcome"])
        return f"<{type(self).__name__}: {', '.join(parts)}>"


class Result(_Outcome[M, OptimizeReport]):
    """The result of `optimize`: the model after a pipeline, with the report and the proof."""

    @property
    def _optimize(self) -> OptimizeReport:
        return self.report


class SearchResult(_Outcome[M, SearchReport]):
    """The result of `search`: the best model within the limits, made by `pipeline`, with the report of the search."""

    @property
    def _optimize(self) -> OptimizeReport:
        return self.report["result"]


class _Reported(Generic[R]):
    """A report."""

    report: R
    """The report, a dictionary; `cli/REPORTS.md` in the source describes its fields."""

    def __init__(self, native: _native.Report) -> None:
        self._native = native
        self.report = cast(R, json.loads(native.json()))

    def _repr_html_(self) -> str:
        return _framed(self._native.html())


class Verification(_Reported[VerifyReport]):
    """The result of `verify`; true if the models agree."""

    @property
    def agrees(self) -> bool:
        """True if the models agree within the limits."""
        return self.report["verdict"] == "agree"

    @property
    def failures(self) -> list[str]:
        """The differences that are not accepted, one sentence each."""
        return self.report["failures"]

    def __bool__(self) -> bool:
        return self.agrees

    def __repr__(self) -> str:
        return f"<Verification: the models {'; '.join([self.report['verdict'], *self.failures])}>"


class Benchmark(_Reported[BenchReport]):
    """The result of `bench`."""

    @property
    def speed(self) -> float:
        """The median time of the first model over that of the last."""
        return 1 / self.report["models"][-1]["ratio"]

    def __repr__(self) -> str:
        times = ", ".join(f"{1e3 * timing['median_s']:.3f} ms" for timing in self.report["models"])
        return f"<Benchmark: {times}>"


def _count(number: int) -> str:
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def _framed(page: str) -> str:
    """A page in a frame of its own, so that its style does not change the notebook's."""
    escaped = page.replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe srcdoc="{escaped}" style="width: 100%; height: 30em; border: 0"></iframe>'


def page_of(outcome: Any) -> str:
    """The report of a result as a complete HTML document."""
    return cast(str, outcome._native.html())
