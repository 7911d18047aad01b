"""Time of a training step, loss and all gradients: the graph of `differentiate` in ONNX Runtime against PyTorch.

    python3 tests/tables/gradients.py [NAME...] [--rounds 9]

Both compute the same loss of the same prepared model on one thread: PyTorch runs the forward graph operator by
operator and differentiates it. Rounds are interleaved; the table shows medians of processor time, the forward pass of ONNX Runtime with
constant weights, and the largest difference of a gradient in relation to its largest element. Needs PyTorch. The table
is written to gradients.md."""
import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch.nn import functional

import common

CACHE = Path.home() / ".cache/pare-models"
MODELS = {
    "cifar-resnet20": (lambda: common.model("cifar-resnet20"), {"N": 64}),
    "cifar-vit": (lambda: common.model("cifar-vit"), {"N": 64}),
    "cifar-mbv2": (lambda: common.ROOT / "fixtures/cifar-mbv2.onnx", {"N": 64}),
    "minilm": (lambda: CACHE / "minilm.onnx", {"batch": 16, "sequence": 32}),
}


def windows(attributes):
    pads = attributes.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:], "symmetric pads"
    return {"stride": attributes.get("strides", 1), "padding": pads[:2], "dilation": attributes.get("dilations", 1),
            "groups": attributes.get("group", 1)}


def axes(given, attributes):
    return [int(axis) for axis in given[0]] if given else attributes["axes"]


def sliced(x, starts, ends, axes=None, steps=None):
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        axis = int(axes[i]) if axes is not None else i
        step = int(steps[i]) if steps is not None else 1
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
    return x


def reshaped(x, target, attributes):
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(target.tolist())])


def gemm(a, b, c, attributes):
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    return torch.addmm(c, a, b, alpha=attributes.get("alpha", 1.0), beta=attributes.get("beta", 1.0))


def gathered(x, index, axis):
    shape = x.shape[:axis] + index.shape + x.shape[axis + 1:]
    if axis == 0 and index.dim() > 0 and x.dim() == 2:
        return functional.embedding(index, x)
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def unsqueezed(x, given):
    for axis in sorted(int(axis) for axis in given):
        x = x.unsqueeze(axis)
    return x


TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}

# The operators of the forward graphs: inputs `x` and attributes `a`.
OPERATORS = {
    "Add": lambda x, a: x[0] + x[1],
    "And": lambda x, a: x[0] & x[1],
    "Cast": lambda x, a: x[0].to(TYPES[a["to"]]),
    "Clip": lambda x, a: x[0].clamp(*[None if v is None else v.item() for v in x[1:]]),
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Conv": lambda x, a: functional.conv2d(*x, **windows(a)),
    "Div": lambda x, a: x[0] / x[1],
    "Erf": lambda x, a: torch.erf(x[0]),
    "Expand": lambda x, a: x[0].expand(torch.broadcast_shapes(x[0].shape, x[1].tolist())),
    "Flatten": lambda x, a: x[0].reshape(int(np.prod(x[0].shape[:a.get("axis", 1)])), -1),
    "Gather": lambda x, a: gathered(x[0], x[1], a.get("axis", 0)),
    "Gemm": lambda x, a: gemm(*x, a),
    "GlobalAveragePool": lambda x, a: x[0].mean((2, 3), keepdim=True),
    "GreaterOrEqual": lambda x, a: x[0] >= x[1],
    "LayerNormalization": lambda x, a: functional.layer_norm(x[0], x[1].shape, *x[1:], eps=a.get("epsilon", 1e-5)),
    "MatMul": lambda x, a: x[0] @ x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Range": lambda x, a: torch.arange(*[v.item() for v in x]),
    "ReduceL2": lambda x, a: x[0].norm(dim=axes(x[1:], a), keepdim=bool(a.get("keepdims", 1))),
    "ReduceMean": lambda x, a: x[0].mean(axes(x[1:], a), bool(a.get("keepdims", 1))) if len(x) > 1 else x[0].mean(),
    "ReduceSum": lambda x, a: x[0].sum(axes(x[1:], a), bool(a.get("keepdims", 1))),
    "Relu": lambda x, a: torch.relu(x[0]),
    "Reshape": lambda x, a: reshaped(x[0], x[1], a),
    "Shape": lambda x, a: torch.tensor(x[0].shape[a.get("start", 0):a.get("end")]),
    "Slice": lambda x, a: sliced(*x),
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "Split": lambda x, a: x[0].split(x[1].tolist() if len(x) > 1 else x[0].shape[a["axis"]] // a["num_outputs"], a.get("axis", 0)),
    "Sub": lambda x, a: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Unsqueeze": lambda x, a: unsqueezed(*x),
    "Where": lambda x, a: torch.where(*x),
}


class Forward:
    """The forward graph in PyTorch."""

    def __init__(self, model, parameters):
        constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.parameters = {name: constants.pop(name).requires_grad_() for name in parameters}
        self.constants = constants
        attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in model.graph.node]
        self.nodes = list(zip(model.graph.node, attributes))

    def step(self, inputs):
        """The loss and the gradients."""
        values = {**self.constants, **self.parameters, **inputs}
        for node, attributes in self.nodes:
            given = [values[name] if name else None for name in node.input]
            result = OPERATORS[node.op_type](given, attributes)
            values.update(zip(node.output, result) if isinstance(result, tuple) else [(node.output[0], result)])
        return values["loss"], torch.autograd.grad(values["loss"], list(self.parameters.values()))


def draw(value, sizes, generator):
    """A random tensor for an input."""
    shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        return generator.standard_normal(shape).astype(np.float32)
    high = {"input_ids": 20000, "attention_mask": 1}.get(value.name, 0)
    low = high if value.name == "attention_mask" else 0
    return generator.integers(low, high + 1, shape, np.int64)


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(name, rounds):
    path, sizes = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.onnx"
        subprocess.run([common.ROOT / "target/debug/examples/differentiate", path(), out], check=True)
        plain, differentiated = f"{out}.forward", str(out)
        forward = onnx.load(plain)
        step, alone = session(differentiated), session(plain)
    generator = np.random.default_rng(0)
    inputs = {value.name: draw(value, sizes, generator) for value in forward.graph.input if value.name != "target"}
    first = forward.graph.output[0].name
    shape = onnxruntime.InferenceSession(str(path())).run([first], inputs)[0].shape
    inputs["target"] = generator.standard_normal(shape).astype(np.float32)
    names = [i.name for i in step.get_inputs() if i.name not in inputs]
    values = {t.name: numpy_helper.to_array(t) for t in forward.graph.initializer}
    gradients = [o.name for o in step.get_outputs()][len(alone.get_outputs()):]
    network = Forward(forward, names)
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    given = {**inputs, **{name: values[name] for name in names}}
    outputs = ["loss", *gradients]
    runs = {"forward": lambda: alone.run(["loss"], inputs), "step": lambda: step.run(outputs, given),
            "torch": lambda: network.step(tensors)}
    times = {key: [] for key in runs}
    results = {key: run() for key, run in runs.items()}
    for _ in range(rounds):
        for key, run in runs.items():
            start = time.process_time()
            run()
            times[key].append(time.process_time() - start)
    pairs = [(a, b.numpy()) for a, b in zip(results["step"][1:], results["torch"][1])]
    # Gradients that are 0 but for rounding, as those of the biases of keys, are compared with the others.
    least = 1e-4 * max(np.abs(b).max() for _, b in pairs)
    error = max(np.abs(a - b).max() / max(np.abs(b).max(), least) for a, b in pairs)
    middle = {key: 1e3 * median(value) for key, value in times.items()}
    return {"model": name, "forward ms": f"{middle['forward']:.1f}", "step ms": f"{middle['step']:.1f}",
            "PyTorch ms": f"{middle['torch']:.1f}", "step / PyTorch": f"{middle['step'] / middle['torch']:.2f}",
            "step / forward": f"{middle['step'] / middle['forward']:.1f}", "difference": f"{error:.0e}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build = ["cargo", "build", "--quiet", "--workspace", "--example", "differentiate"]
    subprocess.run(build, cwd=common.ROOT, check=True)
    rows = [measure(name, arguments.rounds) for name in arguments.models]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    text = "# Gradients\n\n" + __doc__.split("\n\n")[0] + f"\n\nMedians of {arguments.rounds} interleaved rounds on one thread, "
    text += "processor time; 64 images, or 16 × 32 tokens. Forward: ONNX Runtime with constant\nweights.\n\n"
    print("\n".join(lines))
    if arguments.models == list(MODELS):
        (common.HERE / "gradients.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
