"""The functions with the arguments of onnxsim and onnxslim."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_pare
import pytest
from onnx_pare import PareError, _drop_in

from .conftest import LINEAR, model_of


def operators(model: onnx.ModelProto | None) -> set[str]:
    assert model is not None
    return {node.op_type for node in model.graph.node}


def test_simplify_takes_a_proto_or_a_path(digits: onnx.ModelProto, digits_path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, ok = onnx_pare.simplify(digits)
        assert ok and operators(model).isdisjoint({"BatchNormalization", "Identity", "Constant"})
        same, ok = onnx_pare.simplify(str(digits_path), check_n=3, output_path=str(tmp_path / "o.onnx"))
        assert ok and same.graph == model.graph and (tmp_path / "o.onnx").exists()


def test_arguments_of_simplify(digits: onnx.ModelProto) -> None:
    assert "BatchNormalization" in operators(onnx_pare.simplify(digits, skip_fuse_bn=True)[0])
    skipped = onnx_pare.simplify(digits, skipped_optimizers=["fuse_bn_into_conv", "eliminate_identity"])[0]
    assert "BatchNormalization" in operators(skipped)
    folded = onnx_pare.simplify(digits, perform_optimization=False)[0]
    assert {"BatchNormalization", "Identity"} <= operators(folded)
    for shapes in ({"image": [4, 1, 8, 8]}, [4, 1, 8, 8]):
        fixed = onnx_pare.simplify(digits, overwrite_input_shapes=shapes)[0]
        dims = fixed.graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_value for size in dims] == [4, 1, 8, 8]
    assert onnx_pare.simplify(digits, test_input_shapes={"image": [2, 1, 8, 8]}, check_n=2)[1]
    assert onnx_pare.simplify(digits, input_data={"image": np.ones((3, 1, 8, 8), np.float32)})[1]
    newer = onnx_pare.simplify(digits, target_opset_version=18)[0]
    assert newer.opset_import[0].version == 18
    with pytest.raises(PareError, match="there is no input `picture`") as caught:
        onnx_pare.simplify(digits, overwrite_input_shapes={"picture": [1]})
    assert caught.value.hint == "the inputs are image"


def test_outputs_and_functions_of_simplify() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Relu(x) z = Exp(x) }"
    model, ok = onnx_pare.simplify(model_of(text), unused_output=["z"])
    assert ok and operators(model) == {"Relu"}

    def to_abs(model: onnx.ModelProto) -> bool:
        model.graph.node[0].op_type = "Abs"
        return True

    original = model_of("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    result, ok = onnx_pare.simplify(original, custom_rewriter=lambda model: None if to_abs(model) else model)
    assert not ok and operators(result) == {"Relu"}
    assert onnx_pare.simplify(original, custom_rewriter=lambda model: False)[1]


def test_arguments_without_a_meaning_are_named(digits: onnx.ModelProto) -> None:
    with pytest.warns(UserWarning, match="simplify does nothing for `profile`, `skip_shape_inference`"):
        onnx_pare.simplify(digits, skip_shape_inference=True, profile="p.json")
    with pytest.warns(UserWarning, match="slim does nothing for `size_threshold`"):
        onnx_pare.slim(digits, size_threshold=100)


def test_slim(digits: onnx.ModelProto, digits_path: Path, tmp_path: Path) -> None:
    assert "BatchNormalization" not in operators(onnx_pare.slim(digits, model_check=True))
    output = tmp_path / "slim.onnx"
    assert onnx_pare.slim(str(digits_path), str(output), save_as_external_data=True) is None
    assert len(list(tmp_path.glob("slim*"))) == 2 and len(onnx.load(output).graph.node) == 31
    assert "BatchNormalization" in operators(onnx_pare.slim(digits, skip_optimizations=["graph_fusion"]))
    fixed = onnx_pare.slim(digits, input_shapes=["image:2,1,8,8"])
    assert fixed is not None and fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    half = onnx_pare.slim(digits, dtype="fp16")
    assert half is not None and half.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    np.save(tmp_path / "image.npy", np.ones((2, 1, 8, 8), np.float32))
    assert onnx_pare.slim(digits, model_check=True, model_check_inputs=[f"image:{tmp_path}/image.npy"]) is not None
    with pytest.raises(PareError, match="`dtype` is float16 or float32, not uint8"):
        onnx_pare.slim(digits, dtype="uint8")
    with pytest.raises(PareError, match="one model can be slimmed at a time"):
        onnx_pare.slim([digits, digits])  # type: ignore[arg-type]


def test_slim_extracts() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Exp(a) y = Neg(b) }"
    assert operators(onnx_pare.slim(model_of(text), outputs=["b:fp32"])) == {"Relu", "Exp"}
    assert operators(onnx_pare.slim(model_of(text), inputs=["a"], outputs=["b"])) == {"Exp"}
    assert operators(onnx_pare.slim(model_of(LINEAR))) == {"MatMul"}


def test_pipelines_without_passes() -> None:
    names = [name for name, info in onnx_pare.passes().items() if info["text"] is None]
    for skipped in ([], ["drop-dead"], ["fold-bn", "fuse-gemm"], ["lift-constants"], names):
        pipeline = _drop_in._without(skipped)
        result = onnx_pare.optimize(model_of(LINEAR), passes=pipeline, prove=False)
        used = {step["pass"] for step in result.report["steps"]}
        assert used.isdisjoint(set(skipped) - {"drop-dead"}), pipeline
