"""Structured or unstructured? Pruning or quantization? Every family of passes on three models, accuracy against the bytes
that are stored and against measured latency.

    python3 tests/tables/compare.py [MODEL ...]

What this build has no pass for is left out.
"""
import os
import sys
import tempfile
from pathlib import Path

import common

#: Family, setting, pipeline after `safe`.
FAMILIES = [
    ("unstructured", "50 % zeros", "sparsify{ratio=0.5}"),
    ("unstructured", "70 % zeros", "sparsify{ratio=0.7}"),
    ("unstructured", "90 % zeros", "sparsify{ratio=0.9}"),
    ("2:4", "2:4", "sparsify{pattern=2:4}"),
    ("channels", "67 % MACs", "prune-channels{macs=0.667}"),
    ("channels", "50 % MACs", "prune-channels{macs=0.5}"),
    ("channels", "83 % time", "prune-channels{latency=0.83}"),
    ("channels", "71 % time", "prune-channels{latency=0.71}"),
    ("hidden units", "-50 %", "prune-hidden{ratio=0.5}"),
    ("heads", "-25 %", "prune-heads{ratio=0.25}"),
    ("folded", "1 activation", "remove-activations{count=1},fold-linear"),
    ("blocks dropped", "1 block", "drop-blocks{count=1}"),
    ("blocks dropped", "2 blocks", "drop-blocks{count=2}"),
    ("tokens merged", "r=4", "merge-tokens{r=4}"),
    ("tokens merged", "r=8", "merge-tokens{r=8}"),
    ("INT8", "INT8", "quantize{for=size}"),
    ("INT8", "weights alone", "quantize{method=weights}"),
    ("channels + INT8", "67 % MACs, INT8", "prune-channels{macs=0.667},quantize{for=size}"),
    ("channels + INT8", "71 % time, INT8", "prune-channels{latency=0.71},quantize{for=size}"),
    ("hidden units + INT8", "-50 %, INT8", "prune-hidden{ratio=0.5},quantize{for=size}"),
]
MODELS = sys.argv[1:] or ["cifar-resnet20", "cifar-vit", "digits-cnn"]


def names():
    return {p["name"] for p in common.pare("passes")["passes"]}


def measure(name, folder, known):
    calibration, tested = common.samples(name, folder, True), common.tested(name, folder)
    made = []
    for i, (family, setting, pipeline) in enumerate([("original", "safe", "")] + FAMILIES):
        wanted = [step.split("{")[0] for step in pipeline.replace("},", "}|").split("|")] if pipeline else []
        wanted = [step for part in wanted for step in part.split(",")]
        if not set(wanted) <= known:
            continue
        out = folder / f"{name}-{i}.onnx"
        passes = "safe" + ("," + pipeline + (",safe" if "quantize" not in pipeline else "") if pipeline else "")
        report = common.pare(
            "optimize", common.model(name), "-o", out, "--passes", passes, "--samples", calibration, "--no-prove", check=False
        )
        # A family that has nothing to take from this model, such as heads from a convolutional network, refuses.
        if report is None or (pipeline and not any(s["patches"] for s in report["steps"] if s["pass"] in wanted)):
            continue
        score = common.accuracy(out, *tested)
        stored = report.get("weights")
        packed = stored["zstd_bytes"][1] if stored else zstd(out)
        made.append((family, setting, out, score, packed))
        print(name, family, setting, f"{score:.2f}", file=sys.stderr, flush=True)
    rows = []
    for batch in [1, 16]:
        times = common.latency([m[2] for m in made], batch=batch, time=3.0, rounds=40)
        for i, (seconds, ratio) in enumerate(times):
            if batch == 1:
                family, setting, out, score, packed = made[i]
                rows.append({
                    "model": name, "family": family, "setting": setting, "accuracy": f"{score:.2f}",
                    "bytes": os.path.getsize(out), "after zstd": packed, "ms": f"{1e3 * seconds:.3f}",
                    "speed": f"{1 / ratio:.2f}",
                })
            else:
                rows[i]["speed, batch 16"] = f"{1 / ratio:.2f}"
    return rows


def zstd(path):
    """Bytes after zstd, by the command where there is one."""
    import shutil
    import subprocess

    if shutil.which("zstd") is None:
        return "-"
    return len(subprocess.run(["zstd", "-9", "-c", path], capture_output=True, check=True).stdout)


def best(rows, name, budget, by):
    """The most accurate setting of each family within a share of the original's bytes or time."""
    mine = [r for r in rows if r["model"] == name]
    whole = mine[0]
    cost = {"bytes": lambda r: r["bytes"] / whole["bytes"], "time": lambda r: float(whole["speed"]) / float(r["speed"])}[by]
    fits = [r for r in mine[1:] if cost(r) <= budget]
    return max(fits, key=lambda r: float(r["accuracy"]), default=None)


def answers(rows):
    text = ""
    for name in MODELS:
        mine = [r for r in rows if r["model"] == name]
        if not mine:
            continue
        whole = mine[0]
        free = [r for r in mine if r["family"] in ("unstructured", "2:4")]
        whole_units = [r for r in mine if r["family"] in ("channels", "hidden units", "heads", "blocks dropped", "tokens merged", "folded")]
        say = lambda r: f"{r['family']} ({r['setting']}): {r['accuracy']} %, {r['speed']}× as fast"
        fastest_free = max(free, key=lambda r: float(r["speed"]), default=None)
        near = [r for r in whole_units if float(r["accuracy"]) >= float(whole["accuracy"]) - 1]
        fastest = max(near, key=lambda r: float(r["speed"]), default=None)
        text += f"**{name}**, {whole['accuracy']} %.\n"
        if fastest_free:
            # A rewrite that removes nothing moves the time by a few hundredths.
            paid = float(fastest_free["speed"]) > 1.05
            text += "Zeros paid in time only where whole channels died of them and went" if paid else "Zeros never paid in time"
            text += f": at best {fastest_free['speed']}×, at {fastest_free['accuracy']} %. "
        if fastest:
            text += f"Of what removes whole units and loses at most one point, the fastest is {say(fastest)}.\n"
        else:
            text += "Nothing that removes whole units stayed within one point.\n"
        quarter = best(rows, name, 0.35, "bytes")
        if quarter:
            text += f"Of all that stores at most 35 % of the bytes the most accurate is {say(quarter)}.\n"
        quick = [r for r in mine[1:] if float(r["accuracy"]) >= float(whole["accuracy"]) - 1]
        if quick:
            text += f"The fastest of all within one point is {say(max(quick, key=lambda r: float(r['speed'])))}.\n"
        text += "\n"
    return text


def main():
    folder, known = Path(tempfile.mkdtemp()), names()
    rows = [row for name in MODELS for row in measure(name, folder, known)]
    text = (
        "Every pipeline starts from `safe`, is calibrated on the same unlabelled images, and is tested on images that nothing "
        "was fitted to. Times are of ONNX Runtime on one thread, all optimizations on, all models of a row block in turn.\n\n"
        "## Structured or unstructured? Pruning or quantization?\n\n" + answers(rows) + "## Figures\n\n" + common.markdown(rows)
    )
    common.write_doc("compare", "Families against each other", text)
    common.write_csv("compare", rows)

    def draw(figure):
        axes = figure.subplots(len(MODELS), 2, squeeze=False)
        for (left, right), name in zip(axes, MODELS):
            mine = [r for r in rows if r["model"] == name]
            for family in dict.fromkeys(r["family"] for r in mine):
                of = [r for r in mine if r["family"] == family]
                scores = [float(r["accuracy"]) for r in of]
                left.plot([r["bytes"] / 1e3 for r in of], scores, marker="o", label=family)
                right.plot([float(r["ms"]) for r in of], scores, marker="o", label=family)
            left.set(title=name, xlabel="stored, kB", ylabel="accuracy, %")
            right.set(title=name, xlabel="ms a sample, one thread")
        axes[0][1].legend(fontsize=7)

    common.picture("compare", draw, (11, 3.6 * len(MODELS)))


if __name__ == "__main__":
    main()
