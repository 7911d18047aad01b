#!/usr/bin/env python3
"""Prints what `pare optimize` takes on models at the limits: time and peak memory of the whole process.

    python3 -m pip install onnx numpy
    cargo build --release
    python3 tests/limits.py [--pare target/release/pare] [--runs 5] [--big]

Limits: a chain of 20,000 operators in 1 s; a model of 25 MB in 0.15 s and 1.5 times its size plus 30 MB of memory; with
`--big`, one of 2.7 GB in 4 s and 100 MB; all without proof. Exits with 1 if one is broken.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

CHAIN = 20_000


def chain(path):
    """A chain of operators that no pass may remove."""
    from onnx import helper

    names = ["x"] + [f"v{i}" for i in range(CHAIN - 1)] + ["y"]
    kinds = ["Relu", "Sin", "Tanh", "Neg", "Exp"]
    nodes = [helper.make_node(kinds[i % 5], [names[i]], [names[i + 1]]) for i in range(CHAIN)]
    save(path, nodes, [4], [])


def weights(path):
    """25 MB of weights in ten layers."""
    import numpy as np
    from onnx import helper, numpy_helper

    width, rng = 800, np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(10):
        weight = (rng.standard_normal((width, width)) / width).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{i}"))
        source, product, target = f"a{i - 1}" if i else "x", f"p{i}", f"a{i}" if i < 9 else "y"
        nodes.append(helper.make_node("MatMul", [source, f"w{i}"], [product]))
        nodes.append(helper.make_node("Relu", [product], [target]))
    save(path, nodes, [1, width], constants)


def external(path):
    """2.7 GB of weights beside the model, and operators between them that do nothing."""
    import numpy as np
    from onnx import TensorProto, helper

    width, layers, nodes, constants = 8192, 10, [], []
    size = width * width * 4
    block = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
    with open(path + ".data", "wb") as file:
        for i in range(layers):
            file.write(np.roll(block, i, axis=1).tobytes())
            weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in ("location", os.path.basename(path) + ".data"), ("offset", i * size), ("length", size):
                weight.external_data.add(key=key, value=str(value))
            constants.append(weight)
            source, target = f"a{i - 1}" if i else "x", f"a{i}" if i < layers - 1 else "y"
            nodes.append(helper.make_node("MatMul", [source, f"w{i}"], [f"p{i}"]))
            nodes.append(helper.make_node("Identity", [f"p{i}"], [f"i{i}"]))
            nodes.append(helper.make_node("Relu", [f"i{i}"], [target]))
    save(path, nodes, [1, width], constants)


def save(path, nodes, shape, constants):
    import onnx
    from onnx import TensorProto, helper

    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "limits", [value("x")], [value("y")], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def run(command):
    """Seconds and peak bytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(process.stderr.read().decode())
    return seconds, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pare", default="target/release/pare")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--big", action="store_true", help="a model of 2.7 GB, too")
    options = parser.parse_args()
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'model':<20}{'size MB':>10}{'seconds':>10}{'limit':>8}{'peak MB':>10}{'limit':>8}")
        # What one operator takes in memory has no limit of its own; only weights count.
        cases = [
            ("20,000 operators", chain, 1.0, lambda size: float("inf")),
            ("25 MB of weights", weights, 0.15, lambda size: 1.5 * size + 30e6),
        ]
        if options.big:
            cases.append(("2.7 GB of weights", external, 4.0, lambda size: 100e6))
        for name, make, limit, allowed in cases:
            path, out = os.path.join(folder, "in.onnx"), os.path.join(folder, "out.onnx")
            # Made in a process of its own: what this one holds would be a floor under its children's peak memory.
            process = multiprocessing.Process(target=make, args=(path,))
            process.start()
            process.join()
            size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder) if file.startswith("in.onnx"))
            runs = [run([options.pare, "optimize", path, "-o", out, "--no-prove"]) for _ in range(options.runs)]
            seconds, peak, memory = statistics.median(r[0] for r in runs), max(r[1] for r in runs), allowed(size)
            broken |= seconds > limit or peak > memory
            print(f"{name:<20}{size / 1e6:>10.1f}{seconds:>10.3f}{limit:>8}{peak / 1e6:>10.1f}{memory / 1e6:>8.0f}")
    sys.exit(int(broken))


if __name__ == "__main__":
    main()
