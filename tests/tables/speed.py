#!/usr/bin/env python3
"""The latency of models before and after `safe`: no result may be slower than its original.

    python3 -m pip install numpy onnx
    cargo build --release
    python3 tests/tables/speed.py [FOLDER…] [--models NAME…] [--runs 3] [--rounds 30]

Measures the fixtures, the models of the shared folder, the synthetic ones that the tool there makes, and those in the
given folders. Original and result run in turn in ONNX Runtime with all of its optimizations, on one thread and a batch of
1; the speed of a round is the time of the original over that of the result, and that of a run the median of its rounds.
Each run is a process of its own, and every other one loads the result first: the place in memory matters to some models.
A model that seems slower is measured in as many runs again, and the median is that of all.
Exits with 1 if the median over the runs is below 0.97 for a model, or the mean over the models is not above 1.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, SHARED, markdown, merged, pare, write_csv, write_doc

#: A smaller speed is a failure; what is above is noise.
LEAST = 0.97
#: Without weights.
SKIPPED = ["minilm-skeleton"]


def found(folders, scratch):
    """The paths of all models: of those with one name, the first."""
    make = [sys.executable, SHARED / "tools/make_models.py"]
    subprocess.run(make, env={**os.environ, "OUT": str(scratch)}, check=True, stdout=sys.stderr)
    paths = {}
    for folder in [ROOT / "fixtures", ROOT / "fixtures/cases", SHARED / "models", *folders, scratch]:
        for path in sorted(Path(folder).glob("*.onnx")):
            if path.stem not in SKIPPED and not path.stem.startswith("tmp_"):
                paths.setdefault(path.stem, path)
    return paths


def speed(original, result, swap, rounds):
    """The median speed of one run, and seconds of both models; `None` if they do not run."""
    order = [result, original] if swap else [original, result]
    report = pare("bench", *order, "--threads", 1, "--rounds", rounds, "--time", 1, check=False)
    if report is None:
        return None
    ratio = report["models"][1]["ratio"]
    seconds = [model["median_s"] for model in report["models"]]
    return (ratio, seconds[::-1]) if swap else (1 / ratio, seconds)


def speeds(original, result, runs, rounds):
    """The runs of one model; `None` if it does not run."""
    measured = []
    for total in (runs, 2 * runs):
        while len(measured) < total:
            run = speed(original, result, len(measured) % 2 == 1, rounds)
            if run is None:
                return None
            measured.append(run)
        if statistics.median(median for median, _ in measured) >= LEAST:
            break
    return measured


def row_of(name, original, scratch, given):
    """One row; without a speed where nothing can be measured."""
    result = scratch / "result" / "out.onnx"
    row = dict.fromkeys(["model", "nodes before", "nodes after", "ms before", "ms after", "speed", "lowest", "highest", "note"], "")
    row["model"] = name
    report = pare("optimize", original, "-o", result, "--no-prove", check=False)
    if report is None:
        return {**row, "note": "not optimized"}
    row["nodes before"], row["nodes after"] = (report[key]["nodes"] for key in ("before", "after"))
    if not any(step["patches"] for step in report["steps"]):
        return {**row, "note": "unchanged"}
    measured = speeds(original, result, given.runs, given.rounds)
    if measured is None:
        return {**row, "note": "does not run in the engine alone"}
    medians = [median for median, _ in measured]
    row["ms before"], row["ms after"] = (f"{1e3 * statistics.median(of):.4g}" for of in zip(*(s for _, s in measured)))
    for key, summary in ("speed", statistics.median), ("lowest", min), ("highest", max):
        row[key] = f"{summary(medians):.3f}"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders with more models")
    parser.add_argument("--models", nargs="+", help="only these; the rows of others stay")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "result").mkdir()
        for name, path in found(given.folders, scratch).items():
            if given.models and name not in given.models:
                continue
            rows.append(row_of(name, path, scratch, given))
            print(" ".join(str(value) for value in rows[-1].values()), file=sys.stderr, flush=True)
    if given.models:
        rows = merged("speed", rows, ["model"])
    rows.sort(key=lambda row: row["model"])
    timed = [row for row in rows if row["speed"]]
    slower = [row for row in timed if float(row["speed"]) < LEAST]
    mean = statistics.geometric_mean(float(row["speed"]) for row in timed) if timed else 1.0
    text = f"""{len(timed)} models under `safe`: {mean:.3f} times as fast in the geometric mean, {len(slower)} below {LEAST}. The
speed is the median of at least {parser.get_default("runs")} runs of at least {given.rounds} rounds, between the lowest and the highest run; ONNX Runtime with all
optimizations, one thread, batch 1.

{markdown(rows)}"""
    write_csv("speed", rows)
    write_doc("speed", "The latency of originals and results", text)
    for row in slower:
        print(f"{row['model']} is slower: {row['speed']}", file=sys.stderr)
    sys.exit(bool(slower) or mean <= 1)


if __name__ == "__main__":
    main()
