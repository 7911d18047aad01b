"""Blocks dropped and repaired: accuracy, agreement, divergence and latency for every criterion and repair.

Blocks are scored without repair, again after each removal; every repair is applied to the same blocks. `drop-blocks` sees
500 images without labels; the figures are measured on 1,000 other, labelled ones. In `cifar-vit` layers are removed.
`--time` adds latency (ratios in interleaved rounds, one thread); `--quick` takes one criterion, `--models` some models.
"""
import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from common import compared, latency, markdown, model, outputs, pare, picture, samples, tested, write_csv, write_doc

MODELS = {"cifar-resnet20": "block", "cifar-vit": "layer"}
COUNTS = [1, 2, 3, 4]
CRITERIA = ["influence", "angular", "entropy", "tlc", "wasserstein", "loss"]
REPAIRS = ["none", "affine", "least-squares", "merge", "keep-last", "refit"]
CALIBRATION, TEST = 500, 1000


def subset(path, count, out):
    """The first samples of a file, without labels."""
    data = np.load(path)
    np.savez(out, **{k: data[k][:count] for k in data.files if k != "labels"})
    return out


def rows(name, unit, folder, criteria, timed):
    calibration = subset(samples(name, folder, calibration=True), CALIBRATION, folder / f"{name}-fit.npz")
    data, labels = (array[:TEST] for array in tested(name, folder))
    whole = folder / f"{name}.onnx"
    pare("optimize", model(name), "-o", whole, "--no-prove")
    reference = outputs(whole, data)
    base = pare("inspect", whole)["macs"]
    first = {"model": name, "unit": unit, "dropped": 0, "criterion": "", "repair": "",
             **compared(reference, reference, labels), "macs": 1.0, "speed": 1.0, "blocks": ""}
    found, done = [first], {}
    for criterion in criteria:
        for count, removed in enumerate(order(model(name), calibration, folder, criterion, unit), 1):
            for repair in REPAIRS:
                # Criteria that choose the same blocks give the same model.
                key = (frozenset(removed), repair)
                if key not in done:
                    out = folder / f"{name}-{len(done)}.onnx"
                    names = ",".join(f'"{n}"' for n in removed)
                    report = pare("optimize", model(name), "-o", out, "--passes",
                                  f"drop-blocks{{blocks=[{names}],repair={repair}}},safe",
                                  "--samples", calibration, "--no-prove")
                    done[key] = out, report["after"]["macs"] / base, compared(reference, outputs(out, data), labels)
                _, macs, measured = done[key]
                found.append({"model": name, "unit": unit, "dropped": count, "criterion": criterion, "repair": repair,
                              **measured, "macs": macs, "speed": float("nan"), "blocks": "; ".join(removed)})
                print(f"{name} {criterion} {repair} {count}: {measured}  {removed}", flush=True)
    if timed:
        # Repairs add no nodes, so they do not change the latency.
        sets = {removed: out for (removed, repair), (out, _, _) in done.items() if repair == REPAIRS[0]}
        times = latency([whole, *sets.values()], rounds=60)
        speeds = {removed: 1 / ratio for removed, (_, ratio) in zip(sets, times[1:])}
        for row in found[1:]:
            row["speed"] = speeds[frozenset(row["blocks"].split("; "))]
    return found


def order(source, calibration, folder, criterion, unit):
    """The removed blocks after each step."""
    if criterion == "angular":
        # Spans of each length are selected independently.
        counts, steps = COUNTS, []
    else:
        counts, steps = COUNTS[-1:], []
    for count in counts:
        options = f"count={count},criterion={criterion},repair=none,unit={unit}"
        report = pare("optimize", source, "-o", folder / "order.onnx", "--passes", f"drop-blocks{{{options}}}",
                      "--samples", calibration, "--no-prove")
        step = next(s for s in report["steps"] if s["pass"] == "drop-blocks")
        names = [re.findall("`([^`]*)`", n.split(" (score")[0]) for n in step["notes"] if n.startswith("dropped ")]
        if criterion == "angular":
            steps.append([n for part in names for n in part])
        else:
            steps = [[n for part in names[: i + 1] for n in part] for i in range(len(names))]
    return steps


def shown(row):
    speed = "" if np.isnan(row["speed"]) else f"{row['speed']:.2f}×"
    return {"dropped": row["dropped"], "criterion": row["criterion"], "repair": row["repair"],
            "accuracy": f"{row['accuracy']:.1f} %", "agreement": f"{row['agreement']:.1f} %", "KL": f"{row['kl']:.3f}",
            "MACs": f"{100 * row['macs']:.1f} %", "speed": speed}


def verdict(table):
    """The points at which a repair is no better than none."""
    lines = []
    for repair in REPAIRS[1:]:
        wins, points, worse = 0, 0, []
        for row in (r for r in table if r["repair"] == repair):
            same = ("model", "dropped", "criterion")
            plain = [r for r in table if r["repair"] == "none" and all(r[k] == row[k] for k in same)]
            if not plain:
                continue
            points += 1
            better = row["agreement"] > plain[0]["agreement"] and row["kl"] < plain[0]["kl"]
            wins += better
            if not better:
                worse.append(f"{row['model']} {row['criterion']} {row['dropped']}")
        lines.append(f"* `{repair}` beats none in agreement and KL at {wins} of {points} points"
                     + (f"; not at: {', '.join(worse)}" if worse and len(worse) <= 6 else ""))
    return "\n".join(lines) + "\n"


def draw(figure, table):
    for place, name in enumerate(MODELS):
        axes = figure.add_subplot(1, len(MODELS), place + 1)
        for repair in REPAIRS:
            best = {}
            for row in (r for r in table if r["model"] == name and r["repair"] in ("", repair)):
                best.setdefault(row["dropped"], []).append(row["agreement"])
            places = sorted(best)
            axes.plot(places, [max(best[n]) for n in places], marker="o", label=repair)
        axes.set_title(f"{name}, the best criterion of each")
        axes.set_xlabel(f"{MODELS[name]}s dropped")
        axes.set_ylabel("agreement with the original, %")
        axes.set_xticks(places)
        axes.legend()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    args = parser.parse_args()
    MODELS = {name: MODELS[name] for name in args.models}
    criteria = ["influence"] if args.quick else CRITERIA
    with tempfile.TemporaryDirectory() as folder:
        table = [row for name, unit in MODELS.items() for row in rows(name, unit, Path(folder), criteria, args.time)]
    write_csv("layers", [{k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in table])
    text = f"{__doc__.strip()}\n\n{verdict(table)}\n"
    for name in MODELS:
        text += f"## {name}\n\n{markdown([shown(r) for r in table if r['model'] == name])}\n"
    write_doc("layers", "Blocks dropped and repaired", text + "![agreement](layers.svg)\n")
    picture("layers", lambda figure: draw(figure, table), size=(11, 4.5))
