#!/usr/bin/env python3
"""What training regains of what was cut, without labels.

Each cut is made once by closed form on 2,000 images, then trained by `distill` on unlabelled images towards the original, and
tested on 10,000 others. Fewer images are drawn by the seed; all 50,000 need Pillow, and half an hour a row.
"""
import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

import common

#: The model and the pipeline of each cut.
CUTS = {
    "MACs .5": ("cifar-resnet20", "safe,prune-channels{macs=0.5,streams=true}"),
    "MACs .333": ("cifar-resnet20", "safe,prune-channels{macs=0.333,streams=true}"),
    "MACs .2": ("cifar-resnet20", "safe,prune-channels{macs=0.2,streams=true}"),
    "10 activations": ("cifar-resnet20", "safe,remove-activations{count=10}"),
    "90 % zeros": ("cifar-resnet20", "safe,sparsify{ratio=0.9}"),
    "vit, MACs .5": ("cifar-vit", "safe,prune-channels{macs=0.5}"),
    "vit, 8 tokens a block": ("cifar-vit", "safe,merge-tokens{r=8}"),
}


def drawn(name, count, seed, folder):
    """A file of `count` unlabelled images, drawn by the seed unless it is all of them."""
    everything = common.unlabelled(name, folder, 50_000)
    with np.load(everything) as data:
        key = data.files[0]
        if count >= len(data[key]):
            return everything
        rows = np.random.default_rng(seed).choice(len(data[key]), count, replace=False)
        out = folder / f"{name}-{count}-{seed}.npz"
        np.savez(out, **{key: data[key][np.sort(rows)]})
        return out


def rows(cut, counts, seeds, folder):
    """The accuracies of the original, of the cut, and after training on each number of images."""
    name, pipeline = CUTS[cut]
    original, tested = common.model(name), common.tested(name, folder)
    small = folder / "small.onnx"
    common.pare("optimize", original, "-o", small, "--passes", pipeline, "--samples", common.samples(name, folder, True), "--no-prove", "--no-time")
    found = {"cut": cut, "original": common.accuracy(original, *tested), "closed form": common.accuracy(small, *tested)}
    for count in counts:
        trained, minutes = [], []
        for seed in range(1, 1 + (seeds if count < 50_000 else 1)):
            out = folder / "trained.onnx"
            report = common.pare(
                "optimize", small, "-o", out, "--teacher", original, "--passes", "distill", "--seed", seed,
                "--samples", drawn(name, count, seed, folder), "--no-prove", "--no-time", "--threads", 1,
            )
            trained.append(common.accuracy(out, *tested))
            minutes.append(report["seconds"] / 60)
        worst = f" (least {min(trained):.2f})" if len(trained) > 1 else ""
        found[f"{count:,} images"] = f"{statistics.mean(trained):.2f}{worst}"
        found[f"{count:,} images, minutes"] = f"{statistics.median(minutes):.1f}"
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[200, 2000, 50_000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cuts", nargs="+", choices=list(CUTS), default=list(CUTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = [rows(cut, args.images, args.seeds, Path(folder)) for cut in args.cuts]
    table = [{key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()} for row in table]
    common.write_csv("distill", table)
    text = f"{__doc__.strip()}\n\nAccuracy in %; over {args.seeds} seeds the mean, with the least.\n\n{common.markdown(table)}"
    common.write_doc("distill", "What training regains", text)
