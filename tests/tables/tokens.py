"""Token merging: accuracy, agreement and latency over r, method, batch and threads.

    python tests/tables/tokens.py [--quick]

digits-vit (17 tokens, 4 blocks) on its 500 test samples, cifar-vit (65 tokens, 8 blocks) on 2,000 test images, and, for
latency alone, a vision transformer of 197 tokens and 12 blocks with random weights, if `shared/tools/make_models.py` has
made it (`PARE_SYNTHETIC` names its folder). `--quick` times fewer rounds.
"""
import os
import sys
import tempfile
from pathlib import Path

from common import compared, latency, markdown, model, outputs, pare, picture, tested, write_csv, write_doc

QUICK = "--quick" in sys.argv
METHODS = ("tome", "folder", "ppt")
COUNTS = range(9)
TIME, ROUNDS = (0.3, 7) if QUICK else (2.0, 40)
IMAGES = 1000 if QUICK else 2000
ROUGH = "Made by `--quick`, in few rounds on a busy machine: figures of speed are rough.\n\n"


def merged(original, out, method, r, fixed=""):
    """The model after `safe` and merging, and what the pass said."""
    passes = f"safe,merge-tokens{{method={method},r={r}{fixed}}},safe"
    report = pare("optimize", original, "-o", out, "--passes", passes, "--no-prove", "--threads", 1)
    step = next(s for s in report["steps"] if s["pass"] == "merge-tokens")
    if step["declined"]:
        sys.exit(f"{original}: {step['declined']}")
    return step


def table(name, folder, rows):
    """A row for each method and r. All models are timed in turn, so that what else the machine does falls on all alike."""
    original = model(name)
    images, labels = (array[:IMAGES] for array in tested(name, folder))
    first = outputs(original, images)
    own, models = [], [original]
    for method, r in [("tome", 0)] + [(method, r) for method in METHODS for r in COUNTS if r > 0]:
        out = folder / f"{name}-{method}-{r}.onnx"
        merged(original, out, method, r)
        found = compared(first, outputs(out, images), labels)
        models.append(out)
        own.append({
            "model": name, "method": method if r else "none", "r": r,
            "accuracy": f"{found['accuracy']:.2f}", "agreement": f"{found['agreement']:.2f}",
        })
        print(own[-1], file=sys.stderr)
    for batch in (1, 16):
        for threads in (1, 2):
            times = latency(models, batch, threads, TIME, ROUNDS)
            for row, (_, ratio) in zip(own, times[1:]):
                row[f"speed b{batch} t{threads}"] = f"{1 / ratio:.2f}"
    rows += own


def against_best(rows):
    """The speeds at the most tokens merged, against the faster of the original and `safe`."""
    none = next(row for row in rows if row["model"] == "cifar-vit" and row["method"] == "none")
    most = next(row for row in rows if row["model"] == "cifar-vit" and row["method"] == "tome" and row["r"] == COUNTS[-1])
    keys = [key for key in none if key.startswith("speed")]
    speeds = [f"{float(most[key]) / max(1, float(none[key])):.2f}× ({key[6:]})" for key in keys]
    return f"cifar-vit by ToMe, r = {COUNTS[-1]}, times the faster of the original and `safe`: {', '.join(speeds)}.\n"


def tiny(folder):
    """The ratios of latency of the large transformer at r = 13."""
    path = Path(os.environ.get("PARE_SYNTHETIC", "")) / "syn_vit_tiny.onnx"
    if not path.exists():
        return "syn_vit_tiny was not timed: `PARE_SYNTHETIC` names no folder with it.\n"
    safe, out = folder / "tiny-safe.onnx", folder / "tiny.onnx"
    merged(path, safe, "tome", 0)
    merged(path, out, "tome", 13)
    found = []
    for batch in (1, 8):
        for threads in (1, 2):
            _, (_, unmerged), (_, ratio) = latency([path, safe, out], batch, threads, TIME, ROUNDS)
            found.append(f"{ratio / min(1, unmerged):.2f}× (b{batch} t{threads})")
    return f"A vision transformer of 197 tokens and 12 blocks (syn_vit_tiny), r = 13: latency {', '.join(found)} of that of the faster of the original and `safe`.\n"


def draw(rows):
    def figure(fig):
        axes = fig.subplots(1, 2)
        for axis, name in zip(axes, ("digits-vit", "cifar-vit")):
            for method in METHODS:
                own = [r for r in rows if r["model"] == name and r["method"] in (method, "none")]
                for batch, line in ((1, "--"), (16, "-")):
                    x = [float(r[f"speed b{batch} t1"]) for r in own]
                    axis.plot(x, [float(r["agreement"]) for r in own], line, marker=".", label=f"{method}, batch {batch}")
            axis.axvline(1, color="gray", linewidth=0.5)
            axis.set(title=name, xlabel="speed, times the original (1 thread)", ylabel="same class, %")
            axis.legend(fontsize=7)

    return figure


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("digits-vit", "cifar-vit"):
            table(name, folder, rows)
        large = tiny(folder)
    write_csv("tokens", rows)
    picture("tokens", draw(rows), size=(11, 4.5))
    text = (
        "What merging `r` tokens in each block does to accuracy, to the share of samples that keep their class, and to the\n"
        "speed in ONNX Runtime (all optimizations, times the original; b: samples in a run, t: threads).\n"
        "`r = 0` is `safe` alone.\n\n" + ROUGH * QUICK + "![](tokens.svg)\n\n" + markdown(rows) + "\n" + against_best(rows) + "\n" + large
    )
    write_doc("tokens", "Tokens merged", text)


if __name__ == "__main__":
    main()
