"""Channels removed from cifar-mbv2, an inverted residual network of depthwise convolutions: accuracy and latency.

    python3 tests/tables/depthwise.py [--quick]

For each target of multiply-accumulates: the smallest weights without repair, and `prune-channels` with 200, 300, 500 and
2,000 unlabelled images. Beside it the recipe of its prototype: any number of channels, chosen in one stage, and only the
layers that read a removed channel refitted. Accuracy is that of the written file in ONNX Runtime on the 10,000 test
images; latency is the share of the original's, one image, one thread, interleaved. `--quick` leaves 500 and 2,000 images
out. Some 25 minutes; the images want Pillow."""
import argparse
import sys
import tempfile
from pathlib import Path

import common

MODEL = "cifar-mbv2"
TARGETS = (0.893, 0.8, 0.667)
WEIGHTS = "criterion=l2,repair=none"
PROTOTYPE = "multiple=1,repair=readers"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    counts = [200, 300] if parser.parse_args().quick else [200, 300, 500, 2000]
    with tempfile.TemporaryDirectory() as folder:
        images = {count: common.unlabelled(MODEL, folder, count) for count in counts}
        original, test = common.model(MODEL), common.tested(MODEL, folder)
        base = common.accuracy(original, *test)
        rows, files = [], []
        for target in TARGETS:
            variants = [(0, WEIGHTS), *((count, recipe) for count in counts for recipe in (PROTOTYPE, ""))]
            for count, options in variants:
                out = Path(folder) / f"{target}-{len(files)}.onnx"
                given = ["--samples", images[count]] if count else []
                passes = f"prune-channels{{{','.join(filter(None, [f'macs={target}', options]))}}}"
                report = common.pare("optimize", original, "-o", out, "--passes", passes, "--no-prove", *given)
                got = common.accuracy(out, *test)
                rows.append({
                    "images": count or "none", "passes": passes, "MACs": round(report["after"]["macs"] / report["before"]["macs"], 3),
                    "accuracy": round(got, 2), "lost": round(base - got, 2), "latency": "",
                })
                files.append(out)
                print(*rows[-1].values(), f"{report['seconds']:.1f} s", file=sys.stderr, flush=True)
        for row, (_, ratio) in zip(rows, common.latency([original, *files], rounds=60)[1:]):
            row["latency"] = round(ratio, 3)
    common.write_csv("depthwise", rows)
    text = f"The original is right on {base:.2f} % of the test images.\n\n" + common.markdown(rows)
    common.write_doc("depthwise", "Depthwise convolutions", text)


if __name__ == "__main__":
    main()
