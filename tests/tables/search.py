"""What `pare search` finds within a limit, and how often the limit holds on other samples.

    python3 tests/tables/search.py [MODEL…] [--budget 20m] [--limits labels] [--seeds 10] [--seed-budget 3m]

Calibrated on 2,000 unlabelled images, judged on 1,000 others, and measured on all images that the search did not see.
First with labels (at most one point of accuracy) and without (at least 97 % of the classes unchanged): one thread, one
sample, interleaved. Then for each seed another choice of the judging images of cifar-resnet20, with the probability that
the search states: the limit should hold on the others at least as often. Up to an hour a model. Rows of models, limits
and seeds that are not given stay as they are."""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import common

MODELS = ["cifar-resnet20", "cifar-vit", "digits-cnn"]
#: Images that judge; of the scanned digits there are 500 in total.
JUDGES = {"digits-cnn": 250}
GOALS = {"labels": ["--max-accuracy-drop", "0.01"], "no labels": ["--min-agreement", "0.97"]}


class Images:
    """The images of a model: those that calibrate, that judge, and the others."""

    def __init__(self, name, folder, seed=0):
        self.name, self.folder = name, Path(folder)
        with np.load(common.samples(name, folder, calibration=True)) as data:
            self.input = next(key for key in data.files if key != "labels")
            self.calibration = self.write("calibration", data[self.input])
        images, labels = common.tested(name, folder)
        order = np.arange(len(images)) if seed == 0 else np.random.default_rng(seed).permutation(len(images))
        judges = JUDGES.get(name, 1000)
        self.judge = self.write(f"judge-{seed}", images[order[:judges]], labels[order[:judges]])
        self.others = images[order[judges:]], labels[order[judges:]]

    def write(self, part, images, labels=None):
        out = self.folder / f"{self.name}-{part}.npz"
        np.savez(out, **{self.input: images}, **({} if labels is None else {"labels": labels}))
        return out


def searched(images, limit, budget, seed, *more):
    """The report of a search, the path of its result, and accuracy and agreement on the other images, in %."""
    out = images.folder / f"{images.name}-{seed}.onnx"
    report = common.pare("search", common.model(images.name), "-o", out, "--samples", images.calibration, "--test", images.judge,
                         *limit, "--budget", budget, "--restart", *more)
    others, labels = images.others
    before, after = (common.outputs(path, others).argmax(1) for path in (common.model(images.name), out))
    drop = 100 * float((before == labels).mean() - (after == labels).mean())
    return report, out, drop, 100 * float((before == after).mean())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--limits", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed-budget", default="3m")
    parser.add_argument("models", nargs="*", default=MODELS, help="or `none`, for the seeds alone")
    given = parser.parse_args()
    goals, promises = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in filter("none".__ne__, given.models):
            images = Images(name, folder)
            for limit in (GOALS[goal] for goal in given.limits):
                report, out, drop, agreement = searched(images, limit, given.budget, 0)
                ratio = common.latency([common.model(name), out], rounds=60)[1][1]
                goals.append({"model": name, "limit": " ".join(limit), "speed": f"{1 / ratio:.2f}", "points lost": f"{drop:.2f}",
                              "same class, %": f"{agreement:.2f}", "minutes": f"{report['seconds'] / 60:.1f}",
                              "pipeline": f"`{report['pipeline']}`"})
                print(*goals[-1].values(), file=sys.stderr, flush=True)
        for seed in range(1, given.seeds + 1):
            images = Images("cifar-resnet20", folder, seed)
            report, _, drop, agreement = searched(images, GOALS["labels"], given.seed_budget, seed, "--goal", "bytes", "--confidence", "0.9")
            judged = 100 * report["best"]["measured"]["accuracy_drop"] if report["best"] else 0
            promises.append({"seed": f"{seed:2}", "points lost, judged": f"{judged:.2f}", "points lost, others": f"{drop:.2f}",
                             "stated probability": f"{report['confidence'] or 1:.2f}", "held": "yes" if drop <= 1 else "no",
                             "bytes kept": f"{report['result']['after']['bytes'] / report['result']['before']['bytes']:.3f}"})
            print(*promises[-1].values(), file=sys.stderr, flush=True)
    goals = common.merged("search", goals, ["model", "limit"])
    promises = common.merged("search_seeds", promises, ["seed"])
    common.write_csv("search", goals)
    text = "## Results within a limit\n\n" + common.markdown(goals)
    if promises:
        common.write_csv("search_seeds", promises)
        held = sum(row["held"] == "yes" for row in promises)
        text += f"\n## At most one point of accuracy, on other images\n\nIt held for {held} of {len(promises)} choices of the judging images.\n\n"
        text += common.markdown(promises)
    common.write_doc("search", "Search", text)


if __name__ == "__main__":
    main()
