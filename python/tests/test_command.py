"""The command `pare` of the wheel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest

PARE = Path(sys.executable).parent / ("pare.exe" if os.name == "nt" else "pare")


def pare(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(PARE), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def test_the_command_optimizes(digits_path: Path, tmp_path: Path) -> None:
    done = pare("optimize", digits_path, "-o", tmp_path / "small.onnx", "--json", "--no-time")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["proof"]["outcome"] == "equal" and (tmp_path / "small.onnx").exists()
    # It finds the package of the Python that runs it, whatever environment is active.
    assert report["proof"]["engine"] == f"ONNX Runtime {onnxruntime.__version__} (the package onnxruntime)"


def test_exit_codes_and_streams(digits_path: Path, tmp_path: Path) -> None:
    failed = pare("optimize", "missing.onnx", "-o", tmp_path / "a.onnx")
    assert failed.returncode == 2 and failed.stdout == "" and failed.stderr.startswith("error: ")
    unknown = pare("optimise")
    assert unknown.returncode == 2 and "optimize" in unknown.stderr
    different = pare("diff", digits_path, digits_path.with_name("digits-fold.onnx"))
    assert different.returncode == 1 and different.stdout
    version = pare("--version")
    assert version.returncode == 0 and version.stdout.startswith("pare ")
    module = subprocess.run([sys.executable, "-m", "onnx_pare", "--version"], capture_output=True, text=True)
    assert module.stdout == version.stdout
    data = subprocess.run(
        [PARE, "optimize", "-", "-o", "-", "--no-prove"], input=digits_path.read_bytes(), capture_output=True
    )
    assert data.returncode == 0 and len(data.stdout) < digits_path.stat().st_size


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_a_closed_pipe_is_no_error() -> None:
    words = f"set -o pipefail; {PARE} passes | head -n 1 | grep -q exact"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_an_interrupt_ends_the_command(digits_path: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([PARE, "bench", digits_path, "--time", "60"], stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in errors
