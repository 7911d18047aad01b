#!/usr/bin/env python3
"""Depth against accuracy: activations removed in closed form, the same trained, and activations whose slopes are learned.

`slopes.py [MODEL …] [--points 4,8]` measures some models, at some points, and leaves the rest of the CSV as it was. Trainings of
one model make the same number of passes over the same unlabelled images, towards the original, at one rate; accuracy is that on
other images. Images of CIFAR-10 come from the shared tools, or from `--folder`."""
import argparse
import csv
import tempfile
from pathlib import Path

from common import HERE, accuracy, markdown, model, pare, picture, samples, tested, unlabelled, write_csv, write_doc

#: Activations in all, the points, passes over the images, and the rate.
MODELS = {"digits-cnn": (11, [4, 6, 8, 9], 60, 1e-3), "cifar-resnet20": (19, [4, 8, 13], 2, 1e-3)}
#: Activations removed where padded convolutions are composed.
PADDED = {"digits-cnn": [4, 8, 9]}
#: How many images of CIFAR-10 are trained on.
IMAGES = 10_000


def measure(name, points, folder, learned):
    """Rows of one model."""
    every, _, epochs, rate = MODELS[name]
    original, test = model(name), tested(name, folder)
    cut, trained, out = (folder / f"{name}-{part}.onnx" for part in ("cut", "trained", "out"))
    quiet = ["--no-prove", "--no-time", "--threads", 1]
    train = ["--samples", unlabelled(name, folder, IMAGES), *quiet]
    options = f"epochs={epochs},rate={rate:g}"
    for count in points:
        passes = f"safe,remove-activations{{count={count}}}"
        pare("optimize", original, "-o", cut, "--passes", passes, "--samples", samples(name, folder, True), *quiet)
        pare("optimize", cut, "-o", trained, "--teacher", original, "--passes", f"distill{{{options}}}", *train)
        row = {
            "model": name, "removed": count, "remaining": every - count,
            "closed form": f"{accuracy(cut, *test):.2f}", "and distill": f"{accuracy(trained, *test):.2f}",
        }
        if learned:
            passes = f"safe,learn-slopes{{count={count},{options}}},safe"
            report = pare("optimize", original, "-o", out, "--passes", passes, *train)
            row |= {"learned slopes": f"{accuracy(out, *test):.2f}", "MMAC": f"{report['after']['macs'] / 1e6:.2f}"}
        print(row, flush=True)
        yield row


def padded(name, points, folder):
    """Composed exactly, or with the larger kernel only, whose border differs: before and after training."""
    original, test = model(name), tested(name, folder)
    cut, trained = folder / "padded.onnx", folder / "padded-trained.onnx"
    quiet = ["--no-prove", "--no-time", "--threads", 1]
    _, _, epochs, rate = MODELS[name]
    for count in points:
        row = {"model": name, "removed": count}
        for way, crop in (("exact", "false"), ("larger kernel", "true")):
            passes = f"safe,remove-activations{{count={count},crop={crop}}}"
            report = pare("optimize", original, "-o", cut, "--passes", passes, "--samples", samples(name, folder, True), *quiet)
            options = ["--teacher", original, "--passes", f"distill{{epochs={epochs},rate={rate:g}}}"]
            pare("optimize", cut, "-o", trained, *options, "--samples", unlabelled(name, folder, IMAGES), *quiet)
            row |= {
                f"{way}, MMAC": f"{report['after']['macs'] / 1e6:.2f}", way: f"{accuracy(cut, *test):.2f}",
                f"{way}, trained": f"{accuracy(trained, *test):.2f}",
            }
        yield row


def draw(rows):
    def paint(figure):
        names = list(dict.fromkeys(row["model"] for row in rows))
        for i, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), i + 1)
            own = [r for r in rows if r["model"] == name]
            for way in ("closed form", "and distill", "learned slopes"):
                axes.plot([int(r["remaining"]) for r in own], [float(r[way]) for r in own], marker=".", label=way)
            axes.set(xlabel="activations that remain", ylabel="accuracy, %", title=name)
            axes.legend(fontsize="small")

    return paint


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--points", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--baselines", action="store_true", help="only measure what is compared with, and write nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        new = [row for name in args.models for row in measure(name, args.points or MODELS[name][1], folder, not args.baselines)]
        if args.baselines:
            return
        borders = [row for name in PADDED for row in padded(name, PADDED[name], folder)]
    old = HERE / "slopes.csv"
    key = lambda row: (list(MODELS).index(row["model"]), int(row["removed"]))
    rows = {key(row): row for row in csv.DictReader(open(old))} if old.exists() else {}
    rows = [row for _, row in sorted((rows | {key(row): row for row in new}).items())]
    write_csv("slopes", rows)
    text = __doc__.split("`slopes.py")[0].strip() + "\n\nAccuracy on the test set, in %. *Closed form* is `remove-activations`, calibrated on 2,000 "
    text += "images (of digits, on 512); *and distill* trains its result; *learned slopes* is `learn-slopes` followed by `safe`, which makes "
    text += "as many passes over the same unlabelled images as `distill` does.\n\n"
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == name]
        text += f"## {name}\n\n{MODELS[name][2]} passes over the images.\n\n{markdown(own)}\n"
    text += "![accuracies](slopes.svg)\n"
    if borders:
        text += "\n## Padded convolutions\n\nWhere the second of two convolutions pads, the border of their composition has other weights. "
        text += "`fold-linear` computes it, exactly; *Layer Folding* takes the larger kernel (`crop=true`), which costs less, and trains "
        text += "the difference away.\n\n" + markdown(borders)
        write_csv("padded", borders)
    write_doc("slopes", "Learned slopes", text)
    picture("slopes", draw(rows), size=(10, 4))


if __name__ == "__main__":
    main()
