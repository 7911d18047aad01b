from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_pare
import pytest
from onnx_pare import PareError, Rejected, _reports

from .conftest import LINEAR, model_of


def test_the_result_has_the_kind_of_the_original(digits: onnx.ModelProto, digits_path: Path, tmp_path: Path) -> None:
    proto = onnx_pare.optimize(digits, time=False)
    assert isinstance(proto.model, onnx.ModelProto) and len(proto.model.graph.node) == 31
    assert proto.changed and proto.proven and proto.pipeline == "safe"
    data = onnx_pare.optimize(digits_path.read_bytes(), time=False)
    assert isinstance(data.model, bytes) and data.model == proto.model.SerializeToString(deterministic=True)
    assert isinstance(onnx_pare.optimize(bytearray(digits_path.read_bytes()), time=False).model, bytearray)
    output = tmp_path / "small.onnx"
    path = onnx_pare.optimize(str(digits_path), output, time=False)
    assert path.model == str(output) and output.read_bytes() == data.model
    assert path.report["written"] and path.report["output"] == str(output)


def test_a_path_needs_a_path_for_the_result(digits_path: Path, tmp_path: Path) -> None:
    result = onnx_pare.optimize(digits_path, time=False)
    with pytest.raises(PareError, match="no path for the result") as caught:
        _ = result.model
    assert caught.value.hint is not None and "to_bytes()" in caught.value.hint
    assert len(result.to_proto().graph.node) == 31
    result.save(tmp_path / "saved.onnx")
    assert (tmp_path / "saved.onnx").read_bytes() == result.to_bytes()
    with pytest.raises(PareError, match="does not exist") as caught:
        result.save(tmp_path / "missing" / "saved.onnx")
    assert caught.value.hint is not None and caught.value.hint.startswith("`mkdir -p ")


def test_reports_have_the_declared_fields(digits_path: Path, test_samples: Path) -> None:
    result = onnx_pare.optimize(digits_path, test=test_samples, prove="each")
    report = result.report
    assert set(report) == set(_reports.OptimizeReport.__annotations__) - {"details"}
    assert set(report["before"]) == set(_reports.ModelSize.__annotations__)
    assert set(report["steps"][0]) == set(_reports.StepReport.__annotations__) - {"within"}
    proof = report["proof"]
    assert proof is not None and set(proof) == set(_reports.Proof.__annotations__)
    assert set(proof["outputs"][0]) == set(_reports.OutputDifference.__annotations__)
    assert set(proof["metrics"][0]) == set(_reports.OutputQuality.__annotations__)
    assert set(proof["each"][0]) == set(_reports.StageProof.__annotations__)
    assert proof["samples"] == 500 and proof["metrics"][0]["candidate_accuracy"] == 0.994
    latency = report["latency"]
    assert latency is not None and set(latency) == set(_reports.Latency.__annotations__)
    assert result.speed == latency["speed"]["median"]
    assert repr(result).startswith("<Result: nodes 50 → 31, parameters 79.5 k → 78.2 k, macs 987.5 k → 987.5 k, speed ")


def test_results_are_shown_as_pages(digits: onnx.ModelProto) -> None:
    result = onnx_pare.optimize(digits, time=False, details=True)
    page = onnx_pare.page_of(result)
    assert page.startswith("<!DOCTYPE html>") and "Multiply-accumulates over the depth" in page
    frame = result._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!DOCTYPE'.replace("&lt;", "<")) and "<h1" in frame


def test_lossy_passes_keep_limits(digits: onnx.ModelProto, calibration: Path, test_samples: Path) -> None:
    passes = "safe,remove-activations{count=1}"
    result = onnx_pare.optimize(
        digits, passes=passes, samples=calibration, test=test_samples, max_accuracy_drop=0.02, time=False
    )
    assert result.changed and not result.proven and result.report["after"]["nodes"] < 50
    with pytest.raises(Rejected, match="deviates by") as caught:
        onnx_pare.optimize(digits, passes=passes, samples=calibration, max_deviation=1e-9, time=False)
    proof = caught.value.report["proof"]
    assert proof is not None and proof["failures"] == [caught.value.message]


def test_errors_have_hints_in_the_names_of_python(digits: onnx.ModelProto) -> None:
    with pytest.raises(PareError) as caught:
        onnx_pare.optimize(digits, passes="safe,fold-bm")
    assert caught.value.message == "there is no pass `fold-bm`"
    assert caught.value.hint == "did you mean `fold-bn`?"
    assert caught.value.detail is not None and caught.value.detail.endswith("     ^^^^^^^")
    assert str(caught.value).splitlines()[-1] == "hint: did you mean `fold-bn`?"
    with pytest.raises(PareError) as caught:
        onnx_pare.optimize(digits, passes="quantize")
    assert caught.value.hint is not None and "`samples=`" in caught.value.hint and "--" not in caught.value.hint
    with pytest.raises(PareError) as caught:
        onnx_pare.optimize(digits, prove=False, min_agreement=0.9)
    assert caught.value.hint == "omit `prove=False`"
    with pytest.raises(PareError, match="cannot read|no file|No such file"):
        onnx_pare.optimize("missing.onnx")
    with pytest.raises(PareError, match="`external_data` is `keep`, `embed`, `one`, `each`, not `all`"):
        onnx_pare.optimize(digits, external_data="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a model is a path, bytes or an onnx.ModelProto, not int"):
        onnx_pare.optimize(1)  # type: ignore[type-var]
    with pytest.raises(PareError, match="`2X` is not a number of bytes"):
        onnx_pare.optimize(digits, memory="2X")


def test_evaluate_limits_a_metric(digits: onnx.ModelProto, calibration: Path, test_samples: Path) -> None:
    data = np.load(test_samples)

    def accuracy(session: object) -> float:
        logits = session.run(None, {"image": data["image"]})[0]  # type: ignore[attr-defined]
        return float(np.mean(logits.argmax(1) == data["labels"]))

    options = {"passes": "safe,remove-activations{count=1}", "samples": calibration, "time": False}
    result = onnx_pare.optimize(digits, evaluate=accuracy, max_metric_drop=0.02, **options)  # type: ignore[arg-type]
    assert result.metric is not None and result.metric.before == 0.994 and 0 <= result.metric.drop <= 0.02
    with pytest.raises(Rejected, match="the metric drops from -32894.4 to"):
        onnx_pare.optimize(
            digits, evaluate=lambda model: -len(model) / 10, evaluate_with="bytes", max_metric_drop=-1e9, time=False
        )
    with pytest.raises(ZeroDivisionError):
        onnx_pare.optimize(digits, evaluate=lambda path: 1 / 0, evaluate_with="path", max_metric_drop=0, time=False)
    with pytest.raises(PareError, match="belong together"):
        onnx_pare.optimize(digits, evaluate=accuracy)


def test_unproven_and_unchanged_results_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onnx_pare")
    sequence = model_of("g (seq(float[N]) x) => (float[N] y) { i = Identity(x) y = ConcatFromSequence<axis = 0>(i) }")
    result = onnx_pare.optimize(sequence, time=False)
    proof = result.report["proof"]
    if proof is not None and proof["outcome"] == "unproven":
        assert "the result is not proven" in caplog.text


def test_progress_is_reported_on_the_calling_thread(digits: onnx.ModelProto, calibration: Path) -> None:
    import threading

    stages: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread() and 0 <= done <= total
        stages[stage] = stages.get(stage, 0) + 1

    onnx_pare.optimize(digits, passes="safe,remove-activations{count=1}", samples=calibration, progress=progress, time=False)
    assert stages

    def fails(stage: str, done: int, total: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        onnx_pare.optimize(digits, passes="safe,remove-activations{count=1}", samples=calibration, progress=fails)


def test_other_functions(digits: onnx.ModelProto, digits_path: Path, test_samples: Path, tmp_path: Path) -> None:
    small = onnx_pare.optimize(digits, time=False).model
    verified = onnx_pare.verify(digits, small, samples=test_samples)
    assert verified and verified.agrees and set(verified.report) == set(_reports.VerifyReport.__annotations__) - {"layers"}
    rounded = onnx_pare.optimize(digits, passes="quantize-weights", time=False).model
    assert not onnx_pare.verify(digits, rounded, samples=test_samples)
    assert onnx_pare.verify(digits, rounded, samples=test_samples, measures={"cosine": 0.9})
    assert "differ" in repr(onnx_pare.verify(digits, rounded, tolerance=1e-9, layers=True))
    measured = onnx_pare.bench(digits, small, min_time=0.2, rounds=5)
    assert set(measured.report) == set(_reports.BenchReport.__annotations__) and measured.speed > 0
    assert "<svg" in onnx_pare.page_of(measured)
    seen = onnx_pare.inspect(digits_path, layers=True)
    assert set(seen) == set(_reports.Inspection.__annotations__)
    assert (seen["nodes"], seen["operators"]["Conv"]) == (50, 13) and sum(layer["macs"] or 0 for layer in seen["layers"]) == seen["macs"]
    changed = onnx_pare.diff(digits, small)
    assert set(changed) == set(_reports.ModelDiff.__annotations__) and changed["nodes"]["operators"]["Identity"] == -2
    assert onnx_pare.text(model_of(LINEAR)).count("MatMul") == 1


def test_statistics_take_the_place_of_samples(tmp_path: Path) -> None:
    statistics = tmp_path / "s.safetensors"
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    report = onnx_pare.calibrate(model_of(LINEAR), statistics, samples={"x": x})
    assert set(report) == set(_reports.CalibrationReport.__annotations__) and report["samples"] == 64
    sparse = onnx_pare.optimize(model_of(LINEAR), passes="sparsify{ratio=0.5}", statistics=statistics, time=False)
    assert sparse.report["weights"] is not None and sparse.report["weights"]["density"][1] < 0.7


def test_quantize(digits: onnx.ModelProto, calibration: Path) -> None:
    result = onnx_pare.quantize(
        digits, samples=calibration, purpose="size", min_agreement=0.9, time=False, prove=True
    )
    assert len(result.to_bytes()) < 0.5 * len(digits.SerializeToString())
    assert any(node.op_type == "QuantizeLinear" for node in result.model.graph.node)
    weights = onnx_pare.quantize(digits, exclude=["head*"], time=False)
    assert not any(node.op_type == "QuantizeLinear" for node in weights.model.graph.node)


def test_passes_are_documented() -> None:
    known = onnx_pare.passes()
    assert known["fold-bn"]["effect"] == "rounding" and known["safe"]["text"] is not None
    assert {option["name"] for option in known["quantize"]["options"]} >= {"activations", "ranges"}
    assert all(set(info) == set(_reports.PassInfo.__annotations__) for info in known.values())
    for name in onnx_pare.__all__:
        value = getattr(onnx_pare, name)
        if isinstance(value, type) or hasattr(value, "__code__"):
            assert value.__doc__, name
