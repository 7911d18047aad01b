#!/usr/bin/env python3
"""Units that are not trained while their output does not change: backward multiply-accumulates saved, and what that costs.

cifar-resnet20 at a third of its MACs, trained towards the original on the same unlabelled images with the same seed, once for each
velocity below which units rest. `--cut` and `--images` name a model and images that exist."""
import argparse
import tempfile
from pathlib import Path

from common import accuracy, markdown, model, pare, samples, tested, unlabelled, write_csv, write_doc
from slopes import IMAGES

NAME, CUT = "cifar-resnet20", "safe,prune-channels{macs=0.333,streams=true}"
THRESHOLDS = [None, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2]


def measure(threshold, cut, images, epochs, test, folder):
    out = folder / "out.onnx"
    options = f"epochs={epochs:g},rate=0.001" + (f",freeze={threshold:g}" if threshold else "")
    passes = ["--passes", f"distill{{{options}}}", "--samples", images]
    report = pare("optimize", cut, "-o", out, "--teacher", model(NAME), *passes, "--no-prove", "--no-time", "--threads", 1)
    figures = report["steps"][-1]["figures"]
    print(threshold, figures, flush=True)
    return {
        "freeze": f"{threshold:g}" if threshold else "none",
        "backward MACs saved": f"{100 * figures.get('backward MACs saved', 0.0):.1f} %",
        "accuracy": f"{accuracy(out, *test):.2f}", "held-out drift": f"{figures.get('held-out drift after', figures['held-out drift before']):.5f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thresholds", nargs="+", type=lambda text: None if text == "none" else float(text), default=THRESHOLDS)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--cut", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        images = args.images or unlabelled(NAME, folder, IMAGES)
        cut = args.cut or folder / "third.onnx"
        if not args.cut:
            pare("optimize", model(NAME), "-o", cut, "--passes", CUT, "--samples", samples(NAME, folder, True), "--no-prove", "--no-time")
        test = tested(NAME, folder)
        start = accuracy(cut, *test)
        rows = [measure(threshold, cut, images, args.epochs, test, folder) for threshold in args.thresholds]
    write_csv("freeze", rows)
    text = f"{__doc__.split('`--cut`')[0].strip()}\n\n{args.epochs:g} times over the images at a rate of 0.001; before training, {start:.2f} % of the "
    text += f"10,000 test images are classified correctly. Where all units rest too early, nothing is gained, and the input is returned.\n\n{markdown(rows)}"
    write_doc("freeze", "Units at rest", text)


if __name__ == "__main__":
    main()
