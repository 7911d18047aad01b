"""Threads, signals, memory, and the ONNX Runtime of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_pare
import pytest
from onnx import TensorProto, helper


def run(code: str, **variables: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def large_model(megabytes: int) -> bytes:
    """A chain of products with that many megabytes of weights."""
    size, count = 512, megabytes
    random = np.random.default_rng(0)

    def weight(i: int) -> onnx.TensorProto:
        # Of this scale, values neither grow nor vanish along the chain.
        values = random.standard_normal((size, size), np.float32) * np.float32((2 / size) ** 0.5)
        return helper.make_tensor(f"w{i}", TensorProto.FLOAT, (size, size), values.tobytes(), raw=True)

    nodes = [helper.make_node("Identity", ["x"], ["v0"])]
    for i in range(count):
        nodes += [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"p{i}"]), helper.make_node("Relu", [f"p{i}"], [f"v{i + 1}"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", size])], [value(f"v{count}", TensorProto.FLOAT, ["N", size])],
        [weight(i) for i in range(count)],
    )  # fmt: skip
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the libraries of the process from /proc")
def test_models_run_in_the_package_onnxruntime(digits_path: Path) -> None:
    code = f"""
        import onnxruntime, onnx_pare
        session = onnxruntime.InferenceSession({str(digits_path)!r})
        result = onnx_pare.optimize({str(digits_path)!r}, time=False)
        print(result.report["proof"]["engine"], result.proven)
        onnxruntime.InferenceSession(result.to_bytes())
        print(sorted({{line.split()[-1].rsplit("/")[-1] for line in open("/proc/self/maps") if "onnxruntime" in line}}))
    """
    engine, libraries = run(code).splitlines()
    import onnxruntime

    assert engine == f"ONNX Runtime {onnxruntime.__version__} (the package onnxruntime) True"
    from onnx_pare import _runtime

    assert "onnxruntime_pybind11_state" in libraries
    assert ("libonnxruntime.so" in libraries) != _runtime._is_shareable(onnxruntime)


def test_the_package_works_without_onnx_and_onnxruntime(digits_path: Path) -> None:
    code = f"""
        import sys
        sys.modules["onnx"] = sys.modules["onnxruntime"] = None
        import onnx_pare
        data = open({str(digits_path)!r}, "rb").read()
        assert onnx_pare.inspect(data)["nodes"] == 50
        result = onnx_pare.optimize(data, prove=False)
        print(len(result.model) < len(data))
        try:
            result.to_proto()
        except onnx_pare.PareError as error:
            print(error.hint)
        try:
            onnx_pare.bench(data)
        except onnx_pare.PareError as error:
            print(error)
    """
    lines = run(code, PATH="", PARE_CACHE="/nonexistent", VIRTUAL_ENV="", PARE_ONNXRUNTIME="/nonexistent").splitlines()
    assert lines[:2] == ["True", "`pip install onnx` installs it"]
    assert lines[2].startswith("no usable ONNX Runtime library") and "`pip install onnxruntime`" in lines[3]


def test_an_interrupt_ends_the_work(digits_path: Path, tmp_path: Path) -> None:
    code = f"""
        import onnx_pare, os, signal, threading
        # Shells start commands in the background with interrupts ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # An interrupt of an import of numpy becomes an ImportError there.
        onnx_pare.optimize({str(digits_path)!r})
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                onnx_pare.optimize({str(digits_path)!r})
        except KeyboardInterrupt:
            print("interrupted")
    """
    start = time.monotonic()
    assert run(code) == "interrupted\n" and time.monotonic() - start < 20


def test_threads_work_at_once(digits: onnx.ModelProto) -> None:
    expected = onnx_pare.optimize(digits, time=False).to_bytes()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: onnx_pare.optimize(digits, time=False).to_bytes(), range(16)))
    assert all(result == expected for result in results)


def test_other_threads_run_meanwhile() -> None:
    model = large_model(24)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(onnx_pare.optimize, model, time=False)
        ticks = 0
        while not work.done():
            ticks += 1
            time.sleep(0.01)
    assert ticks > 3 and work.result().changed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of the process from /proc")
def test_calls_release_their_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(large_model(8))
    code = f"""
        import gc, onnx, onnx_pare
        model = onnx.load({str(path)!r})
        def resident():
            gc.collect()
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        def work(count):
            for _ in range(count):
                result = onnx_pare.optimize(model, time=False, prove=False)
                assert len(result.model.graph.initializer) == 8
            del result
        work(20)
        before = resident()
        work(100)
        print(resident() - before)
    """
    # One leaked copy a call would be 800 MB.
    assert int(run(code)) < 40e6


def test_a_missing_provider_is_an_error_that_lists_the_others(digits_path: Path) -> None:
    for call in (
        lambda: onnx_pare.bench(digits_path, provider="cann,device_id=1"),
        lambda: onnx_pare.verify(digits_path, digits_path, provider="cann,device_id=1"),
        lambda: onnx_pare.optimize(digits_path, provider="cann,device_id=1", prove=False, time=False),
    ):
        with pytest.raises(onnx_pare.PareError, match="has no execution provider `cann,device_id=1`, only .*cpu") as caught:
            call()
        assert caught.value.hint is not None and "`library=`" in caught.value.hint
    with pytest.raises(onnx_pare.PareError, match="no execution provider is named `x`: cpu, cuda"):
        onnx_pare.bench(digits_path, provider="x")
    assert onnx_pare.bench(digits_path, provider="cpu", min_time=0.01, rounds=2).report["provider"] == "cpu"
