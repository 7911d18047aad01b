"""Channels removed from cifar-resnet20 and digits-cnn: accuracy against multiply-accumulates and against latency.

    python3 tests/tables/channels.py [--quick]

Three tables. What `prune-channels` reaches at each target, beside the habit of today (the smallest weights, no repair)
and onnxsim's structured pruning. What repair, scope and criterion each are worth, at half of the multiply-accumulates.
And how often limits that are given alone hold on unseen images. Accuracy is that of the written file in ONNX
Runtime, on the whole test set. `--quick` leaves the second and third table out. Some 25 minutes on two cores."""
import argparse
import sys
import tempfile
from pathlib import Path

import onnx

import common

PRUNE = "prune-channels"


class Bench:
    """One model with its samples, and what was made of it."""

    def __init__(self, name, folder):
        self.name, self.folder = name, Path(folder)
        self.model = common.model(name)
        self.calibration = common.samples(name, folder, calibration=True)
        self.test_path = common.samples(name, folder)
        self.test = common.tested(name, folder)
        self.made = []
        self.base = common.accuracy(self.model, *self.test)

    def prune(self, method, target, options, samples=True):
        """A row: the model pruned by these options, or why it was not."""
        out = self.folder / f"{self.name}-{len(self.made)}.onnx"
        given = ["--samples", self.calibration] if samples else []
        passes = f"{PRUNE}{{{options}}}"
        report = common.pare("optimize", self.model, "-o", out, "--passes", passes, "--no-prove", *given, check=False)
        row = {"model": self.name, "method": method, "target": target, "options": options}
        if report is None:
            return row | {"macs": "", "accuracy": "refused", "latency": ""}
        self.made.append(out)
        row["macs"] = round(report["after"]["macs"] / report["before"]["macs"], 4)
        row["accuracy"] = round(common.accuracy(out, *self.test), 2)
        row["latency"] = ""
        row["file"] = out
        print(row["model"], method, target, row["macs"], row["accuracy"], f"{report['seconds']:.1f} s", file=sys.stderr)
        return row

    def onnxsim(self, wanted):
        """The row of onnxsim's structured pruning (after its simplify) that comes nearest to a share of the MACs."""
        try:
            import onnxsim
        except ImportError:
            return None
        simple, _ = onnxsim.simplify(onnx.load(self.model))
        best = None
        for percent in range(5, 100, 5):
            out = self.folder / f"{self.name}-onnxsim-{percent}.onnx"
            onnx.save(onnxsim.apply_structured_pruning(simple, sparsity=percent / 100), out)
            cost = common.pare("inspect", out)["macs"] / common.pare("inspect", self.model)["macs"]
            if best is None or abs(cost - wanted) < abs(best[0] - wanted):
                best = (cost, out)
        got = round(common.accuracy(best[1], *self.test), 2)
        return {"model": self.name, "method": "onnxsim", "target": f"macs={wanted}", "options": "", "macs": round(best[0], 4),
                "accuracy": got, "latency": "", "file": best[1]}

    def time(self, rows):
        """Measure what was made in turn with the original: one sample, one thread."""
        rows = [row for row in rows if row.get("file")]
        times = common.latency([self.model, *(row["file"] for row in rows)], rounds=60)
        for row, (_, ratio) in zip(rows, times[1:]):
            row["latency"] = round(ratio, 3)


def reached(bench, targets):
    rows = []
    for target in targets:
        rows.append(bench.prune("pare", target, target))
        plain = target.replace(",streams=true", "")
        if plain.startswith("macs"):
            rows.append(bench.prune("smallest weights, no repair", target, target + ",criterion=l2,scope=uniform,repair=none"))
            rows += filter(None, [bench.onnxsim(float(plain.split("=")[1]))])
    bench.time(rows)
    return rows


def ablation(bench):
    half = "macs=0.5"
    variants = [(f"repair {r}", f"{half},repair={r}") for r in ("none", "mean", "moments", "merge", "patch", "sequential")]
    variants += [("scope uniform", f"{half},scope=uniform"), ("uniform, l2", f"{half},scope=uniform,criterion=l2")]
    criteria = ("random", "l1", "l2", "bn-scale", "fpgm", "apoz", "variance", "entropy", "wanda", "obd", "energy", "skeleton", "sensitivity")
    variants += [(f"criterion {c}", f"{half},criterion={c}") for c in criteria]
    return [bench.prune(method, half, options) for method, options in variants]


def limits(bench):
    rows = []
    for limit in ("min_agreement=0.99", "min_agreement=0.95", "max_drift=0.01"):
        row = bench.prune("pare", limit, limit)
        if row.get("file"):
            held = common.pare("verify", bench.model, row["file"], "--samples", bench.test_path, "--max-deviation", 1e9)
            figures = held["metrics"][0]
            row |= {"agreement": round(figures["agreement"], 4), "kl": round(figures["kl"], 5)}
        rows.append(row)
    return rows


def draw(rows, bases):
    def drawing(figure):
        axes = figure.subplots(1, 2, sharey=True)
        for ax, what in zip(axes, ("macs", "latency")):
            for method in dict.fromkeys(row["method"] for row in rows):
                points = [(row[what], row["accuracy"]) for row in rows
                          if row["method"] == method and row["model"] == "cifar-resnet20" and isinstance(row[what], float)]
                if points:
                    ax.plot(*zip(*sorted(points)), "o-", label=method)
            ax.axhline(bases["cifar-resnet20"], color="grey", linewidth=0.8)
            ax.set_xlabel({"macs": "multiply-accumulates kept", "latency": "time of a run, of the original's"}[what])
            ax.invert_xaxis()
        axes[0].set_ylabel("accuracy on 10,000 images, %")
        axes[0].legend()

    return drawing


def shown(rows, *keys):
    return common.markdown([{key: row.get(key, "") for key in keys} for row in rows])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        cifar, digits = Bench("cifar-resnet20", folder), Bench("digits-cnn", folder)
        rows = reached(cifar, ["macs=0.8", "macs=0.667", "macs=0.5", "macs=0.333,streams=true", "latency=0.83", "latency=0.71"])
        rows += reached(digits, ["macs=0.5", "macs=0.333,streams=true"])
        parts = [] if quick else ablation(cifar)
        held = [] if quick else limits(cifar)
        bases = {b.name: b.base for b in (cifar, digits)}
        text = "Original: " + ", ".join(f"{name} {base:.2f} %" for name, base in bases.items()) + ".\n\n"
        text += "![accuracy against cost](channels.svg)\n\n"
        text += shown(rows, "model", "target", "method", "macs", "latency", "accuracy")
        if parts:
            text += "\nWhat each part is worth on cifar-resnet20:\n\n" + shown(parts, "method", "macs", "accuracy")
        if held:
            text += "\nLimits given alone, measured again on the test set:\n\n"
            text += shown(held, "target", "macs", "agreement", "kl", "accuracy")
        keys = ("model", "method", "target", "options", "macs", "latency", "accuracy")
        common.write_csv("channels", [{key: row.get(key, "") for key in keys} for row in rows + parts + held])
        common.write_doc("channels", "Channels", text)
        common.picture("channels", draw(rows, bases), size=(10, 4.5))


if __name__ == "__main__":
    main()
