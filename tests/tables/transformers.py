"""Fewer hidden units and fewer heads of transformers: accuracy and agreement in ONNX Runtime, and latency."""
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import latency, markdown, model, outputs, pare, picture, samples, tested, write_csv, write_doc

#: What a row does after `safe`, and without samples.
ROWS = [
    ("FFN −25 %", "prune-hidden{ratio=0.25}"),
    ("FFN −50 %", "prune-hidden{ratio=0.5}"),
    ("FFN −75 %", "prune-hidden{ratio=0.75}"),
    ("one head of each layer", "prune-heads{ratio=%s,scope=uniform}"),
    ("as many heads, shared out", "prune-heads{ratio=%s}"),
    ("FFN −50 % and one head", "prune-hidden{ratio=0.5},prune-heads{ratio=%s,scope=uniform}"),
]
HEADS = {"cifar-vit": 4, "digits-vit": 3}
BATCH = 16


def plain(passes):
    """The same with weights alone: what is done without samples."""
    return passes.replace("}", ",criterion=l2,scope=uniform,repair=none}").replace(",scope=uniform,criterion", ",criterion")


def rows(folder, name, timed):
    test, calibration = samples(name, folder), samples(name, folder, calibration=True)
    data, labels = tested(name, folder)
    original = Path(folder) / f"{name}-safe.onnx"
    pare("optimize", model(name), "-o", original, "--passes", "safe", "--no-prove")
    reference = outputs(original, data).argmax(1)
    found = [{"model": name, "removed": "nothing", "accuracy %": f"{100 * (reference == labels).mean():.2f}",
              "agreement %": "", "L2, no repair: accuracy %": "", "agreement % ": "", "latency": "1.00"}]
    share = f"{1 / HEADS[name] + 1e-3:.3f}"
    for label, passes in ROWS:
        passes = passes.replace("%s", share)
        scores = []
        small = Path(folder) / f"{name}-{len(found)}.onnx"
        bare = small.with_suffix(".plain.onnx")
        given = ["--samples", calibration]
        pare("optimize", original, "-o", small, "--passes", passes, "--no-prove", *given)
        pare("optimize", original, "-o", bare, "--passes", plain(passes), "--no-prove")
        for path in (small, bare):
            top = outputs(path, data).argmax(1)
            scores += [f"{100 * (top == labels).mean():.2f}", f"{100 * (top == reference).mean():.2f}"]
        ratio = latency([original, small], batch=BATCH, samples=test)[1][1] if timed else float("nan")
        found.append(dict(zip(found[0], [name, label, *scores, f"{ratio:.2f}"])))
        print(found[-1], file=sys.stderr)
    return found


def main():
    timed = "--untimed" not in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        found = [row for name in HEADS for row in rows(folder, name, timed)]
    write_csv("transformers", found)
    text = (
        "Unlabelled calibration samples, no training; scores on the test samples, in ONNX Runtime, of the written file. "
        f"Latency at batch {BATCH}, one thread, as a share of the original's. `L2, no repair`: the units with the smallest "
        "weights go, and nothing is repaired.\n\n" + markdown(found)
    )
    write_doc("transformers", "Transformers", text)

    def draw(figure):
        axes = figure.subplots(1, len(HEADS))
        for ax, name in zip(axes, HEADS):
            own = [row for row in found if row["model"] == name][1:]
            place = np.arange(len(own))
            ax.bar(place - 0.2, [float(r["agreement %"]) for r in own], 0.4, label="pare")
            ax.bar(place + 0.2, [float(r["agreement % "]) for r in own], 0.4, label="L2, no repair")
            ax.set_xticks(place, [r["removed"] for r in own], rotation=40, ha="right")
            ax.set_title(name)
            ax.set_ylabel("agreement with the original, %")
            ax.legend(loc="lower left")

    picture("transformers", draw, size=(11, 5))


if __name__ == "__main__":
    main()
