#!/usr/bin/env python3
"""Models out of the test suites of other optimizers: collected while their tests run, then judged.

    tests/suites.py collect FOLDER CHECKOUT [PYTEST ARGUMENT…]
    tests/suites.py judge FOLDER target/release/pare [--passes PIPELINE] [--jobs N]

`collect` runs the tests of a checkout (onnx/optimizer, onnx/ir-py, microsoft/onnxscript, inisis/OnnxSlim,
daquexian/onnx-simplifier) with the calls of its optimizer recorded: the model that goes in, and the number of nodes that come
out. Files `*.onnx` of the checkout are taken as well, such as those of tracel-ai/burn-onnx. Run it in an environment in which
the tests run; `--forked` of pytest-forked goes on after a crash of the optimizer under test. `judge` optimizes each model,
proves it, and compares outputs by itself:

    ok         proven, and the same outputs
    not run    ONNX Runtime does not run the original on generated inputs, or not with the same outputs twice
    unproven   written, but not proven
    refused    rejected with a reason
    wrong      other outputs, though proven
    crash      a panic, or more than five minutes

and lists the models that keep more nodes than their own project leaves. The exit code is 1 if any is wrong or a crash."""
import argparse
import collections
import concurrent.futures
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import conformance

#: Larger models are not kept: tests of rules record whole networks at each step.
MOST_BYTES = 64 << 20
#: Sizes of symbolic dimensions, tried in this order.
SIZES = [2, 1, 4, 3, 8, 16, 32]


def nodes(model):
    """Nodes with those of subgraphs; those of a function count for each call of it."""
    functions = {(f.domain, f.name): f for f in model.functions}

    @functools.cache
    def of_function(key):
        return sum(of_node(node) for node in functions[key].node)

    def of_node(node):
        if (node.domain, node.op_type) in functions:
            return of_function((node.domain, node.op_type))
        graphs = [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
        return 1 + sum(of_node(inner) for graph in graphs for inner in graph.node)

    return sum(of_node(node) for node in model.graph.node)


class Collector:
    """A pytest plugin that records the models that optimizers are called with."""

    def __init__(self, folder, suite):
        self.folder, self.suite = Path(folder), suite
        self.depth, self.test = 0, ""

    def pytest_runtest_setup(self, item):
        self.test = item.nodeid

    def pytest_configure(self):
        """Records calls of whichever optimizers are installed."""
        for module, owner, names in [
            ("onnxoptimizer", None, ["optimize"]),
            ("onnxsim", None, ["simplify"]),
            ("onnxslim", None, ["slim"]),
            ("onnxscript.optimizer", None, ["optimize", "fold_constants"]),
            ("onnxscript.rewriter", None, ["rewrite"]),
            ("onnxscript.rewriter", "RewriteRule", ["apply_to_model"]),
            ("onnxscript.rewriter", "RewriteRuleSet", ["apply_to_model"]),
            ("onnx_ir.passes", "PassBase", ["__call__"]),
        ]:
            try:
                at = __import__(module, fromlist=["_"])
            except ImportError:
                continue
            at = getattr(at, owner, None) if owner else at
            for name in names:
                if at is not None and hasattr(at, name):
                    setattr(at, name, self.recorded(getattr(at, name), owner is not None))

    def recorded(self, function, is_method):
        @functools.wraps(function)
        def call(*args, **keywords):
            model = args[1 if is_method else 0] if len(args) > is_method else None
            before = self.bytes_of(model) if self.depth == 0 else None
            self.depth += 1
            try:
                result = function(*args, **keywords)
            finally:
                self.depth -= 1
            if before:
                first = result[0] if isinstance(result, tuple) else result
                after = self.bytes_of(first) or self.bytes_of(getattr(first, "model", None)) or self.bytes_of(model)
                self.add(before, after)
            return result

        return call

    @staticmethod
    def bytes_of(model):
        """The bytes of a message, a file, or a model of onnx_ir; `None` of anything else."""
        try:
            if isinstance(model, (str, Path)):
                return Path(model).read_bytes()
            if hasattr(model, "SerializeToString"):
                return model.SerializeToString(deterministic=True) if hasattr(model, "opset_import") else None
            if hasattr(model, "opset_imports"):
                import onnx_ir

                return onnx_ir.to_proto(model).SerializeToString(deterministic=True)
        except Exception:
            pass
        return None

    def add(self, before, after=None):
        import onnx

        if len(before) > MOST_BYTES:
            return
        name = f"{self.suite}-{hashlib.sha256(before).hexdigest()[:12]}"
        (self.folder / f"{name}.onnx").write_bytes(before)
        try:
            left = nodes(onnx.load_from_string(after)) if after else None
        except Exception:
            left = None
        # A line at once: tests run in processes of their own, which the optimizer under test may crash.
        with open(self.folder / f"{self.suite}.jsonl", "a") as out:
            print(json.dumps({"model": name, "test": self.test, "nodes": left}), file=out)


def collect(folder, checkout, arguments):
    import pytest

    folder.mkdir(parents=True, exist_ok=True)
    collector = Collector(folder.resolve(), checkout.resolve().name)
    for path in sorted(checkout.rglob("*.onnx")):
        collector.test = str(path.relative_to(checkout))
        collector.add(path.read_bytes())
    if any(checkout.rglob("*test*.py")):
        pytest.main(["-q", "-o", "addopts=", *(arguments or [str(checkout)])], plugins=[collector])
    print(len(collected(folder)), "models", file=sys.stderr)


def collected(folder):
    """The test of each model, and the fewest nodes that its own project leaves."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            known = found.setdefault(entry["model"], entry)
            if entry["nodes"] is not None and (known["nodes"] is None or entry["nodes"] < known["nodes"]):
                found[entry["model"]] = entry
    return found


def feeds(ports, size):
    """Inputs for declared types; `None` for types that are no tensors."""
    import numpy as np

    random, made = np.random.default_rng(0), {}
    for port in ports:
        if not port.type.startswith("tensor("):
            return None
        shape = [d if isinstance(d, int) and d >= 0 else size for d in port.shape]
        kind = port.type[len("tensor(") : -1]
        kind = {"float": "float32", "double": "float64"}.get(kind, kind)
        if kind == "string":
            made[port.name] = np.full(shape, "a", object)
        elif kind == "bool":
            made[port.name] = random.random(shape) > 0.5
        elif kind.startswith("float") and not kind.startswith("float8"):
            made[port.name] = random.standard_normal(shape).astype(kind)
        elif kind.startswith(("int", "uint")):
            made[port.name] = random.integers(0, 3, shape).astype(kind)
        else:
            return None
    return made


def reference(path):
    """Inputs on which a model runs with the same outputs twice, and these; `None` without."""
    try:
        session = conformance.session(path)
    except Exception:
        return None
    for size in SIZES:
        given = feeds(session.get_inputs(), size)
        if given is None:
            return None
        try:
            outputs = session.run(None, given)
            return (given, outputs) if conformance.same(outputs, session.run(None, given)) else None
        except Exception:
            continue
    return None


def judged(path, pare, passes):
    """The verdict on a model, why, and the nodes that are left."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        command = [pare, "optimize", path, "-o", out, "--passes", passes, "--quiet"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return "crash", "it takes more than five minutes", None
        if done.returncode not in (0, 1, 2, 3) or "panicked" in done.stderr:
            return "crash", done.stderr[-300:], None
        wanted = reference(path)
        result = out if out.exists() else path
        left = nodes(onnx.load(result, load_external_data=False)) if done.returncode in (0, 3) else None
        if wanted is None:
            return "not run", "", left
        if done.returncode == 3:
            return "unproven", done.stderr[-300:], left
        if done.returncode != 0:
            return "refused", done.stderr[-300:], left
        try:
            session = conformance.session(result)
            names = {port.name for port in session.get_inputs()}
            outputs = session.run(None, {name: x for name, x in wanted[0].items() if name in names})
        except Exception as error:
            return "wrong", str(error)[:300], left
        return ("ok" if conformance.same(wanted[1], outputs, 1e-3, 1e-5) else "wrong"), "", left


def judge(folder, pare, passes, jobs):
    found = collected(folder)
    counts, more, compared = collections.Counter(), [], 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        verdicts = pool.map(lambda name: judged(folder / f"{name}.onnx", pare, passes), found)
        for (name, entry), (verdict, why, left) in zip(found.items(), verdicts):
            counts[verdict] += 1
            if verdict not in ("ok", "not run"):
                print(f"{verdict:9} {name} {entry['test']}: {' '.join(why.split())}", flush=True)
            if verdict == "ok" and entry["nodes"] is not None:
                compared += 1
                if left > entry["nodes"]:
                    more.append(f"{left} nodes, theirs {entry['nodes']}: {name} {entry['test']}")
    print("\n".join(more))
    print(", ".join(f"{counts[v]} {v}" for v in ("ok", "not run", "unproven", "refused", "wrong", "crash")))
    print(f"{compared - len(more)} of {compared} have no more nodes than their own project leaves")
    sys.exit(bool(counts["wrong"] or counts["crash"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("folder", type=Path)
    one.add_argument("checkout", type=Path)
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="of pytest")
    two = commands.add_parser("judge")
    two.add_argument("folder", type=Path)
    two.add_argument("pare", help="the binary")
    two.add_argument("--passes", default="safe", help="the pipeline")
    two.add_argument("--jobs", type=int, default=1, help="models at once")
    given = parser.parse_args()
    if given.command == "collect":
        collect(given.folder, given.checkout, given.arguments)
    else:
        judge(given.folder, given.pare, given.passes, given.jobs)


if __name__ == "__main__":
    main()
