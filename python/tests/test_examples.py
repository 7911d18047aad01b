"""The notebook, and examples with models that are not part of the source (`PARE_MODELS` is their folder)."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_pare
import pytest

from .conftest import ROOT

MODELS = Path(os.environ.get("PARE_MODELS", "/nonexistent"))


def shown(code: str, names: dict[str, Any]) -> Any:
    """The value of the last expression of a cell."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "python/examples/digits.ipynb"
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    values = [shown("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    assert values[0]["Conv"] == 13 and values[2] == 0.994
    assert "<h1" in values[1]._repr_html_() and "<svg" in values[4]._repr_html_()
    assert values[3].drop <= 0.01


@pytest.mark.skipif(not (MODELS / "minilm.onnx").exists(), reason="PARE_MODELS contains no minilm.onnx")
def test_sentence_pairs() -> None:
    """Embeddings of pairs of sentences keep the order of their similarities."""
    random = np.random.default_rng(0)

    def pairs() -> Iterator[dict[str, Any]]:
        for length in (8, 12, 16, 24):
            ids = random.integers(1000, 20000, (2, length))
            yield {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }

    result = onnx_pare.optimize(MODELS / "minilm.onnx", samples=pairs(), time=False)
    assert result.proven and result.report["after"]["nodes"] < result.report["before"]["nodes"]


@pytest.mark.skipif(not (MODELS / "yolox-nano-3cls.onnx").exists(), reason="PARE_MODELS contains no yolox-nano-3cls.onnx")
def test_a_detector_with_a_metric() -> None:
    """The overlap of the best boxes of two models on the same images."""
    path = MODELS / "yolox-nano-3cls.onnx"
    name, kind = onnx_pare.inspect(path)["inputs"][0]
    shape = [int(size) if size.strip().isdecimal() else 1 for size in kind.partition("[")[2].rstrip("]").split(",")]
    images = np.random.default_rng(0).random((4, *shape), np.float32) * 255
    best: list[Any] = []

    def overlap(session: Any) -> float:
        found = [session.run(None, {name: image})[0].reshape(-1, 8) for image in images]
        found = [rows[rows[:, 4].argmax()] for rows in found]
        best.extend([] if best else found)
        return -float(np.mean([np.abs(a[:4] - b[:4]).mean() for a, b in zip(found, best)]))

    result = onnx_pare.optimize(
        path, samples={name: images.reshape(-1, *shape[1:])}, evaluate=overlap, max_metric_drop=0.1, time=False
    )
    assert result.metric is not None and result.metric.before == 0 and result.metric.drop < 0.1
