#!/usr/bin/env python3
"""What `pare optimize` makes of models, beside the tools that clean up models: nodes, bytes, differences, time, memory.

    python3 -m pip install onnx onnxruntime==1.32.0 onnxsim==0.8.1 onnxslim==0.1.98 onnxscript==0.7.2 onnxoptimizer==0.4.2
    cargo build --release
    python3 tests/tables/peers.py [--models NAME…] [--runs 3]

Needs the models of the shared folder, and the tool there that makes the synthetic ones. Each tool runs as a process of
its own, start included, with what it does by default; of several runs the fastest counts. Then the original and the
result run in ONNX Runtime without its optimizations, on three random inputs, and on a batch of two where the model leaves
that open. Sound is what differs by no more than single precision allows, or than ONNX Runtime's own optimizations change
in the original: its noise. Exits with 1 if a result of ours is larger than the best sound one, unsound, or took too long.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import PARE, SHARED, markdown, model, picture, write_csv, write_doc

OURS = "pare"
TOOLS = [OURS, "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer", "ORT basic"]
SYNTHETIC = ["syn_resnet18_bn", "syn_mobilenetv2_bn", "syn_vit_tiny", "syn_gpt_small", "syn_loop_if", "syn_functions", "syn_qdq_cnn"]
REAL = [
    "ultraface-rfb-320",
    "silero-16k-op15",
    "super-resolution-prepost",
    "digits-vit",
    "digits-cnn",
    "gtcrn-simple",
    "magika-v3-3",
    "yolox-nano-3cls",
    "ppocr-v1.1-det",
    "fastestdet",
    "yunet-n-640",
    "basic-pitch-nmp",
]
#: Largest difference of a sound result, relative to the largest value of the output: single precision, deep models.
EQUAL = 5e-6
#: Our time as a share of onnxslim's.
SHARE = 0.1
#: Our time in seconds, for each of these models.
SECONDS = 0.1
#: Longer runs count as failures.
TIMEOUT = 600


# ---- the tools, each in a process of its own


def simplify(tool, source, target):
    if tool == "onnxsim":
        import onnx, onnxsim

        onnx.save(onnxsim.simplify(onnx.load(source))[0], target)
    elif tool == "onnxslim":
        import onnxslim

        onnxslim.slim(source, target)
    elif tool == "onnxscript":
        import onnx_ir, onnxscript.optimizer

        loaded = onnx_ir.load(source)
        onnxscript.optimizer.optimize(loaded)
        onnx_ir.save(loaded, target)
    elif tool == "onnxoptimizer":
        import onnx, onnxoptimizer

        onnx.save(onnxoptimizer.optimize(onnx.load(source), onnxoptimizer.get_fuse_and_elimination_passes()), target)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = target
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def measured(command, log):
    """Seconds and peak bytes of one process; `None` if it fails."""
    start = time.perf_counter()
    with open(log, "wb") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said)
        while time.perf_counter() - start < TIMEOUT:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                seconds = time.perf_counter() - start
                return (seconds, usage.ru_maxrss * 1024) if status == 0 else None
            time.sleep(0.001)
        process.kill()
        os.wait4(process.pid, 0)
        return None


# ---- what came out, judged in a process of its own: memory of this one would be a floor under that of the tools


def nodes(proto):
    import onnx

    def count(body):
        graphs = [g for n in body for a in n.attribute for g in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]
        return len(body) + sum(count(g.node) for g in graphs)

    return count(proto.graph.node) + sum(count(f.node) for f in proto.functions)


def domains(proto):
    found = set()

    def visit(body):
        for node in body:
            found.add(node.domain)
            for attribute in node.attribute:
                visit(attribute.g.node)

    visit(proto.graph.node)
    for function in proto.functions:
        visit(function.node)
    return found - {"ai.onnx"} | {""}


def session(path, optimized=False):
    import onnxruntime

    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(inputs, name, seed, batch):
    """Random inputs; where a model takes only certain ones, such."""
    import numpy as np

    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
    rng, made = np.random.default_rng(seed), {}
    for port in inputs:
        dtype = kinds[port.type]
        shape = [d if isinstance(d, int) else batch for d in port.shape]
        if name.startswith("silero"):
            if port.name == "sr":
                made["sr"] = np.array(16000, dtype)
                continue
            shape = {"input": [1, 512], "state": [2, 1, 128]}[port.name]
        if name == "syn_gpt_small":
            shape = [batch, 16]
        if dtype == np.float32:
            made[port.name] = rng.standard_normal(shape).astype(dtype)
        else:
            made[port.name] = rng.integers(0, 10, shape).astype(dtype)
    return made


def apart(wanted, got):
    """Largest difference relative to the largest value of an output, or what is wrong."""
    import numpy as np

    worst = 0.0
    for a, b in zip(wanted, got):
        if a.shape != b.shape or a.dtype != b.dtype:
            return "other shapes"
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return "other infinities"
        if finite.any():
            worst = max(worst, float(np.abs(a - b)[finite].max() / max(np.abs(a[finite]).max(), 1e-12)))
    return worst


def difference(before, after, name):
    """Largest difference, or what is wrong; and the noise of the original."""

    try:
        first = session(before)
    except Exception:
        return "the original does not run", None
    try:
        second, deployed = session(after), session(before, optimized=True)
    except Exception:
        return "invalid", None
    ports = lambda s: [[(p.name, p.type, len(p.shape)) for p in side] for side in (s.get_inputs(), s.get_outputs())]
    if ports(first) != ports(second):
        return "another interface", None
    # Sizes that the original leaves open must stay open: what ONNX Runtime infers of outputs may say more.
    if [p.shape for p in first.get_inputs()] != [p.shape for p in second.get_inputs()]:
        return "another interface", None
    is_open = any(not isinstance(d, int) for p in first.get_inputs() for d in p.shape)
    worst, noise = 0.0, 0.0
    for seed, batch in [(0, 1), (1, 1), (2, 1)] + ([(3, 2)] if is_open and not name.startswith("silero") else []):
        given = feed(first.get_inputs(), name, seed, batch)
        try:
            wanted, own = first.run(None, given), deployed.run(None, given)
        except Exception:
            continue  # a size that the model does not take
        try:
            got = second.run(None, given)
        except Exception:
            return "does not run", None
        by, usual = apart(wanted, got), apart(wanted, own)
        if isinstance(by, str):
            return by, None
        worst, noise = max(worst, by), max(noise, usual if isinstance(usual, float) else 0.0)
    return worst, noise


def judge(before, after, name):
    import onnx

    original, result = onnx.load(before, load_external_data=False), onnx.load(after, load_external_data=False)
    own = sorted(domains(result) - domains(original))
    verdict, noise = (f"operators of {', '.join(own)}", None) if own else difference(before, after, name)
    return {"nodes": nodes(result), "bytes": os.path.getsize(after), "verdict": verdict, "noise": noise}


def ask(*args):
    """An answer of this script, from a process of its own."""
    run = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {"nodes": None, "bytes": None, "verdict": "unreadable", "noise": None}


# ---- the table


def rows_of(name, path, runs, folder):
    """A row for every tool."""
    before = ask("--judge", path, path, name)
    for tool in TOOLS:
        target = folder / "out.onnx"
        target.unlink(missing_ok=True)
        ours = [PARE, "optimize", path, "-o", target, "--no-prove", "--offline", "--quiet"]
        command = ours if tool == OURS else [sys.executable, __file__, "--simplify", tool, path, target]
        times = [measured(command, folder / "log") for _ in range(runs)]
        row = {"model": name, "tool": tool, "nodes before": before["nodes"], "bytes before": before["bytes"]}
        if None in times or not target.exists():
            yield {**row, "nodes": None, "bytes": None, "verdict": "fails", "noise": None, "seconds": None, "peak bytes": None}
            continue
        fastest, peak = min(t[0] for t in times), max(t[1] for t in times)
        yield {**row, **ask("--judge", path, target, name), "seconds": round(fastest, 4), "peak bytes": peak}


def sound(row):
    """Whether a result counts: it agrees, or is one of a model that nothing here runs."""
    allowed = max(EQUAL, row["noise"] or 0.0)
    return row["nodes"] is not None and (row["verdict"] == "the original does not run" or number(row["verdict"]) <= allowed)


def number(verdict):
    return verdict if isinstance(verdict, float) else float("inf")


def table(rows, show):
    """Models by tools."""
    cells = {(r["model"], r["tool"]): show(r) for r in rows}
    names = list(dict.fromkeys(r["model"] for r in rows))
    return markdown([{"model": name} | {tool: cells[name, tool] for tool in TOOLS} for name in names])


def document(rows):
    """The document, and what falls short."""
    short, names = [], list(dict.fromkeys(r["model"] for r in rows))
    smaller, ratios = 0, []
    for name in names:
        of = {r["tool"]: r for r in rows if r["model"] == name}
        ours, peers = of[OURS], [r for t, r in of.items() if t != OURS and sound(r)]
        if not sound(ours):
            short.append(f"{name}: {ours['verdict']}")
            continue
        for what in ("nodes", "bytes"):
            best = min((r[what] for r in peers), default=ours[what])
            # The metadata with the pipeline takes some bytes.
            if ours[what] > best + (0 if what == "nodes" else 1024):
                short.append(f"{name}: {ours[what]} {what}, {best} elsewhere")
        smaller += ours["nodes"] < min((r["nodes"] for r in peers), default=0)
        if ours["seconds"] > SECONDS:
            short.append(f"{name}: {ours['seconds']:.3f} s")
        if of["onnxslim"]["seconds"]:
            ratios.append(ours["seconds"] / of["onnxslim"]["seconds"])
            if ratios[-1] > SHARE:
                short.append(f"{name}: {ratios[-1]:.3f} of the time of onnxslim")

    def cell(row, value):
        if row["nodes"] is None:
            return "fails"
        mark = "" if sound(row) else " (✗)"
        return f"{value(row)}{mark}"

    def shown(row):
        verdict = row["verdict"]
        return f"{verdict:.1e}" if isinstance(verdict, float) else verdict

    worst = max((number(r["verdict"]) for r in rows if r["tool"] == OURS and isinstance(r["verdict"], float)), default=0.0)
    loud = {r["model"]: r["noise"] for r in rows if (r["noise"] or 0.0) > EQUAL}
    noisy = " ".join(f"The noise of {name} is {noise:.1e}." for name, noise in loud.items())
    slim = [f"Beside onnxslim ours takes {min(ratios):.3f} to {max(ratios):.3f} of the time."] if ratios else []
    text = "\n".join(
        [
            f"{len(names)} models. Ours has fewer nodes than every sound result of others on {smaller}; its outputs differ by",
            f"{worst:.1e} at most, relative to the largest value. " + " ".join(slim),
            "",
            "Updating this document needs the models of the shared folder and all these tools. (✗) marks results that",
            "are not sound: other outputs, another interface, or operators that only one engine has. Every run is a whole process,",
            "start included.",
            "",
            *(["Falls short:", "", *(f"* {line}" for line in short), ""] if short else []),
            "## Nodes, subgraphs and functions included",
            "",
            table(rows, lambda r: cell(r, lambda r: r["nodes"])),
            "## File, MB",
            "",
            table(rows, lambda r: cell(r, lambda r: f"{r['bytes'] / 1e6:.3f}")),
            "## Largest difference of an output",
            "",
            "Relative to the output's largest value, in ONNX Runtime without its optimizations. " + noisy,
            "",
            table(rows, lambda r: "fails" if r["nodes"] is None else shown(r)),
            "## Time of the process, s",
            "",
            table(rows, lambda r: "" if r["seconds"] is None else f"{r['seconds']:.3f}"),
            "## Peak memory, MB",
            "",
            table(rows, lambda r: "" if r["peak bytes"] is None else f"{r['peak bytes'] / 1e6:.0f}"),
        ]
    )
    return text, short


def draw(rows):
    def on(figure):
        names, axes = list(dict.fromkeys(r["model"] for r in rows)), figure.subplots()
        for k, tool in enumerate(TOOLS):
            cells = [r for name in names for r in rows if (r["model"], r["tool"]) == (name, tool) and r["seconds"]]
            places = [names.index(r["model"]) + (k - len(TOOLS) / 2) * 0.13 for r in cells]
            axes.bar(places, [r["seconds"] for r in cells], 0.13, label=tool)
        axes.set_yscale("log")
        axes.set_ylabel("seconds, whole process")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.legend()

    return on


def main():
    if sys.argv[1:2] == ["--simplify"]:
        return simplify(*sys.argv[2:5])
    if sys.argv[1:2] == ["--judge"]:
        return print(json.dumps(judge(*sys.argv[2:5])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=SYNTHETIC + REAL, help="only these; nothing is written then")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if any(name in SYNTHETIC for name in given.models):
            subprocess.run([sys.executable, SHARED / "tools/make_models.py"], env={**os.environ, "OUT": str(folder)}, check=True, stdout=sys.stderr)
        for name in given.models:
            path = folder / f"{name}.onnx" if name in SYNTHETIC else model(name)
            source = folder / "in.onnx"
            shutil.copy(path, source)
            for row in rows_of(name, source, given.runs, folder):
                rows.append(row)
                print(" ".join(f"{value}" for value in row.values()), file=sys.stderr, flush=True)
    text, short = document(rows)
    if given.models == SYNTHETIC + REAL:
        write_csv("peers", rows)
        picture("peers", draw(rows), size=(12, 6))
        write_doc("peers", "Beside the tools that clean up models", text)
    else:
        print(text)
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
