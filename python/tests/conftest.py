from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches resume from trials in the cache."""
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def digits_path() -> Path:
    return FIXTURES / "digits-cnn.onnx"


@pytest.fixture
def digits(digits_path: Path) -> onnx.ModelProto:
    return onnx.load(digits_path)


@pytest.fixture(scope="session")
def test_samples() -> Path:
    return FIXTURES / "digits.npz"


@pytest.fixture(scope="session")
def calibration() -> Path:
    return FIXTURES / "digits-calibration.npz"


@pytest.fixture
def in_folder(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def model_of(text: str) -> onnx.ModelProto:
    """A model from ONNX's textual syntax of its graph."""
    header = '<ir_version: 8, opset_import: ["" : 17]>\n'
    return onnx.parser.parse_model(header + text)


LINEAR = """g (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { i = Identity(x) y = MatMul(i, w) }"""
