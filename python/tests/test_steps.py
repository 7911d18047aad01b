from __future__ import annotations

import onnx
import onnx_pare
import pytest
from onnx_pare import PareError, Rejected

from .conftest import LINEAR, model_of


def rename_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    return model


def double(model: onnx.ModelProto) -> None:
    """Doubles the weights, in place."""
    tensor = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(tensor) * 2
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def test_functions_are_steps_with_reports_and_proof() -> None:
    result = onnx_pare.optimize(model_of(LINEAR), passes=["safe", rename_nodes, "drop-dead"], time=False)
    assert result.pipeline == "safe,rename_nodes,drop-dead" and result.proven
    assert [node.name for node in result.model.graph.node] == ["node0"]
    step = next(step for step in result.report["steps"] if step["pass"] == "rename_nodes")
    assert (step["patches"], step["effect"], step["counts"]) == (1, "rounding", {"models rewritten": 1})


def test_a_broken_promise_names_the_function() -> None:
    with pytest.raises(Rejected) as caught:
        onnx_pare.optimize(model_of(LINEAR), passes=["safe", double], time=False)
    assert caught.value.hint is not None and "by `double`" in caught.value.hint
    if caught.value.reproducer is not None:
        onnx.load_model_from_string(caught.value.reproducer)


def test_lossy_functions_keep_limits() -> None:
    lossy = onnx_pare.step(double, effect="lossy", name="twice")
    result = onnx_pare.optimize(model_of(LINEAR), passes=["safe", lossy], time=False)
    assert result.pipeline == "safe,twice" and result.changed and not result.proven
    with pytest.raises(Rejected, match="deviates"):
        onnx_pare.optimize(model_of(LINEAR), passes=[lossy], max_deviation=0.5, time=False)


def test_functions_that_change_nothing_or_too_much() -> None:
    unchanged = onnx_pare.optimize(model_of(LINEAR), passes=lambda model: model)
    assert not unchanged.changed and unchanged.pipeline == "lambda"

    def drop_output(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "z"

    with pytest.raises((Rejected, PareError)):
        onnx_pare.optimize(model_of(LINEAR), passes=[drop_output], time=False)

    def fails(model: onnx.ModelProto) -> None:
        raise ValueError("cannot rewrite")

    with pytest.raises(ValueError, match="cannot rewrite"):
        onnx_pare.optimize(model_of(LINEAR), passes=["safe", fails])
    with pytest.raises(PareError, match="`effect` is `exact`, `rounding`, `lossy`, not `none`"):
        onnx_pare.optimize(model_of(LINEAR), passes=[onnx_pare.step(fails, effect="none")])  # type: ignore[arg-type]
    with pytest.raises(PareError, match="no steps"):
        onnx_pare.optimize(model_of(LINEAR), passes=[])
