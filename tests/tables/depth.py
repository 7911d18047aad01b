"""Removing activations, 0 to all: criteria side by side, lines against the identity, with and without a refit; and what
folding alone gives where training left slopes of one.

`depth.py [MODEL …] [--points 1,2,4]` measures some models, at some points, and leaves the rest of the CSV as it was."""
import argparse
import csv
import re
import tempfile
from pathlib import Path

from common import HERE, compared, latency, markdown, model, outputs, pare, picture, samples, tested, write_csv, write_doc

CRITERIA = ["loss", "entropy", "tlc", "tlc-ablation"]
#: What takes the place of an activation: options, and how it is drawn.
FORMS = {
    "identity": ("replacement=identity,refit=false", "C3", "--"),
    "identity, refit": ("replacement=identity,refit=true", "C3", "-"),
    "affine": ("refit=false", "C0", "--"),
    "affine, refit": ("refit=true", "C0", "-"),
    "affine, refit, cropped": ("refit=true,crop=true", "C2", "-"),
}
MODELS = {"digits-cnn": (11, range(1, 12)), "cifar-resnet20": (19, [1, 2, 3, 4, 6, 8, 10, 13, 16, 19])}
BEST = "affine, refit"
#: Where criteria are compared, all replace as well as can be; where forms are compared, all take the same activations.
ORDER = "loss"


def figures_of(scores, first, labels):
    """What is written of a model."""
    found = compared(first, scores, labels)
    return {"accuracy": f"{found['accuracy']:.2f}", "agreement": f"{found['agreement']:.2f}", "kl": f"{found['kl']:.5f}"}


def order(name, criterion, folder, count):
    """Activations in the order in which a criterion lets them go."""
    out = folder / "order.onnx"
    passes = f"safe,remove-activations{{criterion={criterion},count={count}}}"
    report = pare("optimize", model(name), "-o", out, "--no-prove", "--passes", passes, "--samples", samples(name, folder, True))
    step = next(s for s in report["steps"] if s["pass"] == "remove-activations")
    return [re.search("`(.*)`", figure)[1] for figure in step["figures"] if figure.startswith(f"{criterion} of ")]


def measure(name, points, folder):
    """Rows for all criteria and forms of one model."""
    data, labels = tested(name, folder)
    base = folder / "base.onnx"
    report = pare("optimize", model(name), "-o", base, "--no-prove", "--passes", "safe")
    first = outputs(base, data)
    zero = {"macs": report["after"]["macs"]} | figures_of(first, first, labels)
    rows = []
    orders = {criterion: order(name, criterion, folder, MODELS[name][0]) for criterion in CRITERIA}
    lines = [(criterion, BEST) for criterion in CRITERIA] + [(ORDER, form) for form in FORMS if form != BEST]
    for criterion, form in lines:
        made = [(0, base, zero)]
        for count in points:
            names = ",".join(f'"{n}"' for n in orders[criterion][:count])
            passes = f"safe,remove-activations{{names=[{names}],{FORMS[form][0]}}}"
            out = folder / f"{count}.onnx"
            calibration = samples(name, folder, True)
            report = pare("optimize", model(name), "-o", out, "--no-prove", "--passes", passes, "--samples", calibration)
            figures = {"macs": report["after"]["macs"]} | figures_of(outputs(out, data), first, labels)
            made.append((count, out, figures))
            print(name, criterion, form, count, figures, flush=True)
        times = latency([path for _, path, _ in made], time=6.0)
        for (count, _, figures), (seconds, ratio) in zip(made, times):
            rows.append({
                "model": name, "criterion": criterion, "replacement": form, "removed": count,
                **figures, "ms": f"{1e3 * seconds:.4f}", "speed": f"{1 / ratio:.2f}",
            })
    return rows


def folded(folder):
    """What `safe` makes of a network whose slopes became one in training."""
    rows = []
    for name in ("cifar-fold", "digits-fold"):
        out = folder / f"{name}.onnx"
        report = pare("optimize", model(name), "-o", out, "--samples", samples(name, folder))
        before, after = report["before"], report["after"]
        for batch in (1, 16):
            (a, _), (b, ratio) = latency([model(name), out], batch=batch, time=5.0, rounds=60)
            rows.append({
                "model": name, "batch": batch, "nodes": f"{before['nodes']} → {after['nodes']}",
                "multiply-accumulates": f"{before['macs'] / 1e6:.2f} → {after['macs'] / 1e6:.2f} M",
                "ms": f"{1e3 * a:.3f} → {1e3 * b:.3f}", "speed": f"{1 / ratio:.2f}×",
            })
    return rows


def draw(rows):
    def paint(figure):
        names = list(dict.fromkeys(row["model"] for row in rows))
        for i, name in enumerate(names):
            for j in range(2):
                axes = figure.add_subplot(len(names), 2, 2 * i + j + 1)
                keys = [(c, BEST) for c in CRITERIA] if j == 0 else [(ORDER, form) for form in FORMS]
                for criterion, form in keys:
                    own = [r for r in rows if (r["model"], r["criterion"], r["replacement"]) == (name, criterion, form)]
                    x, y = [int(r["removed"]) for r in own], [float(r["accuracy"]) for r in own]
                    style = {"color": FORMS[form][1], "linestyle": FORMS[form][2]} if j else {}
                    axes.plot(x, y, marker=".", label=form if j else criterion, **style)
                axes.set(xlabel="activations removed", ylabel="accuracy, %", title=f"{name}, " + (f"order of {ORDER}" if j else BEST))
                axes.legend(fontsize="small")

    return paint


def table(rows, name):
    """One row for each point: accuracies of all forms and criteria, and what the best form costs."""
    def row(count):
        at = {(r["criterion"], r["replacement"]): r for r in rows if r["model"] == name and int(r["removed"]) == count}
        best = at[ORDER, BEST]
        line = {"removed": count}
        line |= {form: at[ORDER, form]["accuracy"] for form in FORMS if (ORDER, form) in at}
        line |= {f"by {c}": at[c, BEST]["accuracy"] for c in CRITERIA if c != ORDER}
        line |= {"agreement": best["agreement"], "MMAC": f"{int(best['macs']) / 1e6:.2f}", "speed": best["speed"] + "×"}
        crop = at.get((ORDER, "affine, refit, cropped"))
        return line | ({"MMAC, cropped": f"{int(crop['macs']) / 1e6:.2f}", "speed, cropped": crop["speed"] + "×"} if crop else {})

    return markdown([row(count) for count in sorted({int(r["removed"]) for r in rows if r["model"] == name})])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--points", type=lambda text: [int(n) for n in text.split(",")])
    args = parser.parse_args()
    old = HERE / "depth.csv"
    kept = [r for r in csv.DictReader(open(old))] if old.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = [r for r in kept if r["model"] in MODELS and r["model"] not in args.models]
        for name in args.models:
            rows += measure(name, args.points or MODELS[name][1], folder)
        rows.sort(key=lambda r: list(MODELS).index(r["model"]))
        write_csv("depth", rows)
        fold = folded(folder)
    at = {(r["model"], r["criterion"], r["replacement"], r["removed"]): r for r in rows}
    pairs = [(r, at[r["model"], ORDER, BEST, r["removed"]]) for r in rows if (r["criterion"], r["replacement"]) == (ORDER, "identity")]
    pairs = [(a, b) for a, b in pairs if int(a["removed"])]
    worse = sum(float(b["accuracy"]) < float(a["accuracy"]) for a, b in pairs)
    further = sum(float(b["kl"]) >= float(a["kl"]) for a, b in pairs)
    text = "Accuracy on the test set, in %, after activations were removed one after another: calibrated on images without labels, "
    text += "nothing trained. *Identity* is what the papers put in an activation's place before they train again. The order of the columns "
    text += f"on the left is that of `criterion={ORDER}`; the other criteria, each in its own order, with the best replacement.\n\n"
    for name in dict.fromkeys(r["model"] for r in rows):
        text += f"## {name}\n\n{table(rows, name)}\n"
    text += f"At {len(pairs)} points lines with a refit are compared with the identity: {further} times they are no closer to the original's outputs "
    text += f"(KL divergence), {worse} times fewer images are classified right.\n\n![accuracies](depth.svg)\n\n"
    text += "## Slopes of one\n\nWhere training drove slopes to one (*Layer Folding*), `safe` removes the activations and composes the layers, "
    text += "exactly: outputs are proven equal on the whole test set.\n\n" + markdown(fold)
    write_doc("depth", "Fewer layers", text)
    picture("depth", draw(rows), size=(11, 8))


main()
