#!/usr/bin/env python3
"""Lottery tickets: the claim that a sparse network trains as well as the dense one if it starts from the dense one's first weights.

From each seed, `digits-init` is trained with labels. The mask of its largest weights is then applied to the first weights, and
what remains is trained in the same way (the *ticket*; Frankle and Carbin, 2019), beside a random mask with as many weights in
each layer. Needs scikit-learn, from which the labelled scans come."""
import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import accuracy, markdown, model, pare, tested, write_csv, write_doc

TRAIN = "distill{loss=labels,steps=%d,rate=0.003}"
#: The shares of zeros.
RATIOS = [0.8]


def labelled(folder):
    """The 1,297 scans that are not in the fixtures' test set, as `train_digits.py` splits and normalises them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images.astype(np.float32) / 16 - 0.305) / 0.376
    order = np.random.RandomState(0).permutation(len(images))[:1297]
    out = folder / "labelled.npz"
    np.savez(out, image=images[order][:, None], labels=digits.target.astype(np.int64)[order])
    return out


def measure(seed, ratios, steps, folder):
    """Accuracies of one seed: of the dense network, then of the ticket and the random mask for each ratio."""
    data, test = labelled(folder), tested("digits-init", folder)
    quiet = ["--no-prove", "--no-time", "--threads", 1]
    first, dense, mask, out = (folder / name for name in ("first.onnx", "dense.onnx", "mask.safetensors", "out.onnx"))
    # Batch norms that have seen no data are constants; in the convolutions they have weights of their own.
    pare("optimize", model("digits-init"), "-o", first, "--passes", "safe", *quiet)
    train = ["--samples", data, "--seed", seed, *quiet]
    pare("optimize", first, "-o", dense, "--passes", TRAIN % steps, *train)
    found = {("dense", 0.0): accuracy(dense, *test)}
    for ratio in ratios:
        for way, criterion in (("ticket", "magnitude"), ("random mask", "random")):
            passes = f"sparsify{{ratio={ratio},criterion={criterion},scope=layer,refit=none,cascade=false}}"
            pare("mask", dense, "-o", mask, "--passes", passes, "--seed", seed)
            passes = f"apply-mask{{file={mask}}},{TRAIN % steps}"
            pare("optimize", first, "-o", out, "--passes", passes, *train)
            found[way, ratio] = accuracy(out, *test)
    print(seed, found, file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(seed, args.ratios, args.steps, Path(folder)) for seed in range(1, args.seeds + 1)]
    write_csv("lottery", [{"seed": seed} | {f"{way} {ratio}": f"{value:.2f}" for (way, ratio), value in row.items()} for seed, row in enumerate(found, 1)])

    def cell(key):
        values = [row[key] for row in found]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    table = [{"zeros": "none", "ticket": cell(("dense", 0.0)), "random mask": ""}]
    for ratio in args.ratios:
        table.append({"zeros": f"{100 * ratio:g} %"} | {way: cell((way, ratio)) for way in ("ticket", "random mask")})
    text = f"{__doc__.strip()}\n\nAccuracy in % on 500 other scans, over {args.seeds} seeds with the standard deviation, after {args.steps} "
    text += f"steps each (`{TRAIN % args.steps}`). Masks take the same share of every layer.\n\n{markdown(table)}"
    write_doc("lottery", "Lottery tickets", text)


main()
