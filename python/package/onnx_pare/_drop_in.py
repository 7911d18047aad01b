"""Functions with the arguments of onnxsim's `simplify` and onnxslim's `slim`.

Arguments that have a meaning here are mapped onto passes and options; those that have none are named in a warning. Both
functions run the pipeline `safe` and prove the result, whether a check was asked for or not.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np

from ._api import FunctionStep, Step, inspect, optimize, passes, step
from ._errors import PareError, Rejected
from ._models import is_path, is_proto, onnx_package

if TYPE_CHECKING:
    import onnx

ModelOrPath = Union[str, "os.PathLike[str]", "onnx.ModelProto"]
Shapes = Union[Mapping[str, Sequence[int]], Sequence[int], Sequence[str], None]

# The passes that fold batch norms: to the others they are a scale and a shift, or linear layers.
_BATCH_NORMS = ["fold-bn", "fold-scale", "fold-linear"]

# Optimizers of onnxsim, by the passes that do the same.
_OPTIMIZERS = {
    "fuse_bn_into_conv": _BATCH_NORMS,
    "eliminate_identity": ["drop-noops"],
    "eliminate_nop_cast": ["drop-noops", "merge-casts"],
    "eliminate_nop_dropout": ["drop-noops"],
    "eliminate_nop_pad": ["drop-noops"],
    "eliminate_nop_reshape": ["drop-noops", "merge-reshapes"],
    "eliminate_nop_transpose": ["drop-noops", "merge-transposes"],
    "eliminate_nop_concat": ["drop-noops"],
    "eliminate_nop_expand": ["drop-noops", "drop-expands"],
    "eliminate_nop_split": ["drop-noops"],
    "eliminate_deadend": ["drop-dead"],
    "eliminate_unused_initializer": ["drop-dead"],
    "eliminate_common_subexpression": ["deduplicate"],
    "eliminate_duplicate_initializer": ["deduplicate"],
    "eliminate_if_with_const_cond": ["inline-branches"],
    "eliminate_shape_gather": ["resolve-shapes", "fuse-sizes"],
    "eliminate_shape_op": ["resolve-shapes"],
    "eliminate_slice_after_shape": ["resolve-shapes"],
    "eliminate_consecutive_idempotent_ops": ["drop-idempotent"],
    "extract_constant_to_initializer": ["lift-constants"],
    "fuse_add_bias_into_conv": ["fold-scale"],
    "fuse_matmul_add_bias_into_gemm": ["fuse-gemm"],
    "fuse_consecutive_concats": ["merge-concats"],
    "fuse_consecutive_slices": ["merge-slices"],
    "fuse_consecutive_transposes": ["merge-transposes"],
    "fuse_consecutive_squeezes": ["merge-reshapes", "merge-views"],
    "fuse_consecutive_unsqueezes": ["merge-reshapes", "merge-views"],
    "fuse_consecutive_reduce_unsqueeze": ["merge-reductions"],
    "fuse_pad_into_conv": ["merge-pads"],
    "fuse_pad_into_pool": ["merge-pads"],
    "fuse_transpose_into_gemm": ["fuse-gemm"],
}

# The groups of optimizations of onnxslim, as patterns of passes.
_GROUPS = {
    "constant_folding": "lift-constants|resolve-shapes|fold-constants|fold-absorbing",
    "graph_fusion": "fold-bn|fold-scale|fold-linear|fuse-.*|merge-.*|split-.*|slice-.*|lower-.*",
    "dead_node_elimination": "drop-.*",
    "subexpression_elimination": "deduplicate",
    "weight_tying": "deduplicate",
}

_FOLDING = "(lift-constants,resolve-shapes,fold-constants)*,drop-dead"


def simplify(
    model: ModelOrPath,
    check_n: int = 0,
    perform_optimization: bool = True,
    skip_fuse_bn: bool = False,
    overwrite_input_shapes: Shapes = None,
    test_input_shapes: Shapes = None,
    skipped_optimizers: Sequence[str] | None = None,
    skip_constant_folding: bool = False,
    skip_shape_inference: bool = False,
    input_data: Mapping[str, Any] | None = None,
    dynamic_input_shape: bool = False,
    custom_lib: str | None = None,
    include_subgraph: bool = False,
    unused_output: Sequence[str] | None = None,
    tensor_size_threshold: str = "1.5GB",
    mutable_initializer: bool = False,
    *,
    inline_functions: bool = False,
    input_shapes: Shapes = None,
    target_opset_version: int | Literal["latest"] | None = None,
    custom_rewriter: Callable[[Any], Any] | None = None,
    output_path: str | None = None,
    **others: Any,
) -> tuple[onnx.ModelProto, bool]:
    """Simplifies a model: a replacement of `onnxsim.simplify`.

    Args:
        model: A path or an `onnx.ModelProto`.
        check_n: Number of random inputs of `test_input_shapes` to compare on; the result is compared in any case.
        perform_optimization: False for constant folding only.
        skip_fuse_bn: Keep batch norms.
        overwrite_input_shapes: Sizes of the symbolic axes of inputs, by name.
        test_input_shapes: Shapes of the random inputs to compare on, by name.
        skipped_optimizers: Optimizers to skip, by the names of onnxoptimizer or of the passes here.
        skip_constant_folding: Compute no constants.
        input_data: Inputs to compare on, by name.
        custom_lib: A library of custom operators.
        unused_output: Outputs to remove.
        mutable_initializer: Keep initializers that are inputs as inputs.
        inline_functions: Inline the model's functions.
        target_opset_version: The version of the operator set.
        custom_rewriter: A function `ModelProto -> ModelProto` that is run, too; with proof.
        output_path: Save the result there, too.
        others: Further arguments of onnxsim, which are named in a warning.

    Returns:
        The result, and true if it equals the original up to rounding; otherwise the original, and false.
    """
    _ignored(
        "simplify",
        others,
        skip_shape_inference=skip_shape_inference,
        dynamic_input_shape=dynamic_input_shape,
        tensor_size_threshold=tensor_size_threshold not in ("1.5GB", None),
    )
    del include_subgraph                                      # passes visit every graph of a model
    skipped = list(_BATCH_NORMS) if skip_fuse_bn else []
    for name in skipped_optimizers or []:
        skipped += _OPTIMIZERS.get(name, [name] if name in passes() else [])
    if skip_constant_folding:
        skipped += ["fold-constants", "resolve-shapes"]
    if not inline_functions:
        skipped.append("inline-functions")
    pipeline: list[Step] = []
    sizes = _sizes(model, overwrite_input_shapes or input_shapes)
    if sizes:
        pipeline.append(sizes)
    if unused_output:
        pipeline.append(f"drop-outputs{{only={json.dumps(list(unused_output))}}}")
    pipeline += _opset(model, target_opset_version)
    main = _without(skipped) if perform_optimization else _FOLDING
    pipeline.append(main)
    if custom_rewriter is not None:
        pipeline += [_rewriter(custom_rewriter), main]
    samples: Any = None
    if input_data:
        samples = [{name: np.asarray(value) for name, value in input_data.items()}]
    elif test_input_shapes is not None:
        samples = _random(model, test_input_shapes, max(check_n, 1))
    try:
        result = optimize(
            model,
            passes=pipeline,
            samples=samples,
            custom_ops=[custom_lib] if custom_lib else (),
            freeze_initializers=not mutable_initializer,
            time=False,
        )
    except Rejected:
        return _loaded(model), False
    if output_path is not None:
        result.save(output_path)
    return result.to_proto(), True


def slim(
    model: ModelOrPath,
    output_model: str | None = None,
    *,
    model_check: bool = False,
    input_shapes: Shapes = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    no_shape_infer: bool = False,
    skip_optimizations: Sequence[str] | None = None,
    dtype: str | None = None,
    skip_fusion_patterns: Sequence[str] | None = None,
    size_threshold: int | None = None,
    inspect: bool = False,
    dump_to_disk: bool = False,
    save_as_external_data: bool = False,
    model_check_inputs: Sequence[str] | None = None,
    verbose: bool = False,
    **others: Any,
) -> onnx.ModelProto | None:
    """Slims a model: a replacement of `onnxslim.slim`.

    Args:
        model: A path or an `onnx.ModelProto`.
        output_model: The path to write the result to.
        model_check: The result is compared in any case, if ONNX Runtime is installed.
        input_shapes: Sizes of the symbolic axes of inputs, by name or as `name:1,3,224,224`.
        inputs: The values that become inputs.
        outputs: The values that become outputs.
        skip_optimizations: Groups to skip: `constant_folding`, `graph_fusion`, `dead_node_elimination`,
            `subexpression_elimination`, `weight_tying`.
        dtype: `float16` to store and compute in half precision.
        save_as_external_data: Write the weights into a file beside the result.
        model_check_inputs: Inputs to compare on, as `name:file.npy` or `name:1,3,224,224`.
        others: Further arguments, which are named in a warning.

    Returns:
        The result; None if it was written.

    Raises:
        Rejected: The result differs from the original.
    """
    if not (is_path(model) or is_proto(model)):
        raise PareError("one model can be slimmed at a time", "`onnx_pare.inspect` and `diff` compare several")
    del model_check                                           # always done
    _ignored(
        "slim",
        others,
        no_shape_infer=no_shape_infer,
        skip_fusion_patterns=skip_fusion_patterns,
        size_threshold=size_threshold,
        inspect=inspect,
        dump_to_disk=dump_to_disk,
        verbose=verbose,
    )
    groups = [_GROUPS[name] for name in skip_optimizations or [] if name in _GROUPS]
    skipped = [name for name in passes() if any(re.fullmatch(group, name) for group in groups)]
    pipeline: list[Step] = []
    if inputs or outputs:
        given = {"inputs": _names(inputs), "outputs": _names(outputs)}
        options = ",".join(f"{key}={json.dumps(names)}" for key, names in given.items() if names)
        pipeline.append(f"extract{{{options}}}")
    sizes = _sizes(model, input_shapes)
    if sizes:
        pipeline.append(sizes)
    pipeline.append(_without(skipped))
    if dtype in ("fp16", "float16"):
        pipeline.append("convert-precision{to=fp16,keep_io=false}")
    elif dtype not in (None, "fp32", "float32"):
        raise PareError(f"`dtype` is float16 or float32, not {dtype}", "`onnx_pare.quantize` makes models of eight bits")
    result = optimize(
        model,
        output_model,
        passes=pipeline,
        samples=_check_inputs(model, model_check_inputs),
        freeze_initializers=True,
        time=False,
        external_data="one" if save_as_external_data else "keep",
    )
    return None if output_model else result.to_proto()


def _ignored(function: str, others: Mapping[str, Any], **named: Any) -> None:
    """Names the arguments without a meaning here that were given."""
    given = [name for name, value in {**others, **named}.items() if value]
    if given:
        names = ", ".join(f"`{name}`" for name in given)
        warnings.warn(f"onnx_pare.{function} does nothing for {names}", stacklevel=3)


def _without(skipped: Iterable[str]) -> str:
    """The preset `safe` without some passes."""
    skipped = set(skipped)
    if not skipped:
        return "safe"
    words = re.split(r"([(),*]+)", passes()["safe"]["text"] or "")
    text = "".join("" if word in skipped else word for word in words)
    # Commas that separated what was removed.
    text = re.sub(r",(?=[,)])|(?<=\()," , "", re.sub(r",{2,}", ",", text)).strip(",")
    return re.sub(r"\(\)\*,?", "", text).strip(",") or "drop-dead"


def _rewriter(function: Callable[[Any], Any]) -> FunctionStep:
    def rewrite(model: Any) -> Any:
        result = function(model)
        return None if result is False else result

    return step(rewrite, name="custom-rewriter")


def _inputs(model: ModelOrPath) -> dict[str, tuple[str, list[str]]]:
    """The element type and the dimensions of each input."""
    found = {}
    for name, kind in inspect(model)["inputs"]:
        match = re.fullmatch(r"(\w+)(?:\[(.*)\])?", kind)
        if match is not None:
            found[name] = (match[1], [size.strip() for size in (match[2] or "").split(",") if size.strip()])
    return found


def _named(shapes: Shapes, known: Iterable[str]) -> dict[str, list[int]]:
    """Shapes by input: from a dictionary, from `name:1,3` or, for a model with one input, from a list of sizes."""
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        named = {name: list(shape) for name, shape in shapes.items()}
    elif all(isinstance(size, (int, np.integer)) for size in shapes):
        named = {"": [int(size) for size in shapes]}
    else:
        pairs = (str(text).rsplit(":", 1) for text in shapes)
        named = {name: [int(size) for size in sizes.split(",")] for name, sizes in pairs}
    names = list(known)
    if set(named) == {""} and len(names) == 1:
        named = {names[0]: named[""]}
    unknown = [name for name in named if name not in names]
    if unknown:
        raise PareError(f"there is no input `{unknown[0]}`", f"the inputs are {', '.join(names)}")
    return named


def _sizes(model: ModelOrPath, shapes: Shapes) -> str | None:
    """The pass that fixes the symbolic axes of inputs."""
    if not shapes:
        return None
    inputs = _inputs(model)
    sizes = {}
    for name, shape in _named(shapes, inputs).items():
        dims = inputs[name][1]
        for axis, size in enumerate(shape):
            if size > 0 and (axis >= len(dims) or dims[axis] != str(size)):
                sizes[f"{name}.{axis}"] = size
    if not sizes:
        return None
    return "set-dims{" + ",".join(f"{json.dumps(key)}={size}" for key, size in sizes.items()) + "}"


# numpy's names of element types.
_NUMPY = {"float": "float32", "double": "float64"}


def _random(model: ModelOrPath, shapes: Shapes, count: int) -> list[dict[str, Any]]:
    """Random inputs of these shapes."""
    inputs = _inputs(model)
    named = _named(shapes, inputs)
    random = np.random.default_rng(0)
    feeds = []
    for _ in range(count):
        feed = {}
        for name, (kind, dims) in inputs.items():
            shape = named.get(name) or [int(size) if size.isdecimal() else 1 for size in dims]
            feed[name] = random.random(shape).astype(_NUMPY.get(kind, kind))
        feeds.append(feed)
    return feeds


def _check_inputs(model: ModelOrPath, given: Sequence[str] | None) -> list[dict[str, Any]] | None:
    if not given:
        return None
    files = dict(text.rsplit(":", 1) for text in given)
    shapes = {name: [int(n) for n in text.split(",")] for name, text in files.items() if not text.endswith(".npy")}
    feed = _random(model, shapes, 1)[0]
    feed.update((name, np.load(path)) for name, path in files.items() if path.endswith(".npy"))
    return [feed]


def _names(values: Sequence[str] | None) -> list[str]:
    """Names of values without the element types that may follow them."""
    return [re.sub(r":(fp16|fp32|int32|bool)$", "", value) for value in values or []]


def _opset(model: ModelOrPath, target: int | Literal["latest"] | None) -> list[Step]:
    if target is None:
        return []
    current = inspect(model)["opsets"].get("", 0)
    upgrade = next(option for option in passes()["upgrade-opset"]["options"] if option["name"] == "to")
    version = int(upgrade["default"]) if target == "latest" else target
    if version == current:
        return []
    return [f"{'upgrade' if version > current else 'downgrade'}-opset{{to={version}}}"]


def _loaded(model: ModelOrPath) -> onnx.ModelProto:
    if isinstance(model, (str, os.PathLike)):
        return onnx_package().load(os.fspath(model))  # type: ignore[no-any-return]
    return model
