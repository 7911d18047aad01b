from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_pare
import pytest
from onnx_pare import PareError, _reports


def test_searches_within_limits(digits_path: Path, calibration: Path, test_samples: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    found = onnx_pare.search(
        digits_path, output, samples=calibration, test=test_samples, goal="macs", max_accuracy_drop=0.02, budget=2,
        families=["activations"],
    )  # fmt: skip
    assert str(found.model) == str(output)
    assert set(found.report) == set(_reports.SearchReport.__annotations__)
    assert found.report["goal"] == "macs" and found.report["result"]["written"]
    best = found.report["best"]
    assert best is None or best["measured"]["cost"] <= 1
    assert onnx_pare.page_of(found).startswith("<!DOCTYPE html>")
    made = onnx_pare.optimize(digits_path, passes=found.pipeline, samples=calibration, test=test_samples, time=False)
    assert made.report["after"]["macs"] == found.report["result"]["after"]["macs"]


def test_a_function_judges_candidates(digits: onnx.ModelProto, calibration: Path, test_samples: Path) -> None:
    data = np.load(test_samples)
    calls = 0

    def accuracy(session: object) -> float:
        nonlocal calls
        calls += 1
        assert threading.current_thread() is threading.main_thread()
        logits = session.run(None, {"image": data["image"]})[0]  # type: ignore[attr-defined]
        return float(np.mean(logits.argmax(1) == data["labels"]))

    found = onnx_pare.search(
        digits, samples=calibration, goal="macs", evaluate=accuracy, max_metric_drop=0.02, budget=2, families=["activations"]
    )
    assert calls > 0 and found.report["metric"] == 0.994 and isinstance(found.model, onnx.ModelProto)

    def fails(session: object) -> float:
        raise LookupError("no data")

    with pytest.raises(LookupError, match="no data"):
        onnx_pare.search(digits, samples=calibration, evaluate=fails, max_metric_drop=0.1, budget=1)


def test_a_search_needs_a_limit(digits: onnx.ModelProto, calibration: Path) -> None:
    with pytest.raises(PareError, match="needs a limit") as caught:
        onnx_pare.search(digits, samples=calibration)
    assert caught.value.hint == "give one, such as `max_accuracy_drop=0.01` or `min_agreement=0.97`"


def test_the_first_interrupt_ends_a_search_with_its_best(digits: onnx.ModelProto, calibration: Path) -> None:
    # Shells start commands in the background with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    found = onnx_pare.search(digits, samples=calibration, goal="macs", min_agreement=0.9, budget=120, resume=False)
    timer.join()
    assert found.report["end"] == "cancelled" and time.monotonic() - start < 60
