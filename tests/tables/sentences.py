"""Sentence embeddings: all-MiniLM-L6-v2 made faster, by hand and by `pare search`.

    python3 tests/tables/sentences.py [--search 20m] [--batch 1 16]
    python3 tests/tables/sentences.py --score MODEL

Calibrated on unlabelled sentences of STS 2012–2014. Quality is Spearman's correlation of cosines with the scores of
people, times 100, over 3,000 pairs of STS 2015/16. Latency is that of sentences of 32 tokens on one thread, interleaved.
`--search` lets `pare search` find the pipeline for each batch size, with the correlation of every fourth pair as the
metric, which `--score` prints; the other pairs judge. The model is that of `../shared/tools/fetch_models.py`;
`PARE_MINILM` names another place. Some 15 minutes, and the search's for each of two batch sizes. Rows that are not
measured stay as they are."""
import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

import common

MODEL = Path(os.environ.get("PARE_MINILM", Path.home() / ".cache/pare-models/minilm.onnx"))
BATCHES = [1, 16]
#: Sentences that calibrate.
COUNT = 512
#: Pairs that judge while a pipeline is searched, and the others.
PAIRS = 3000
JUDGES, OTHERS = np.arange(PAIRS) % 4 == 0, np.arange(PAIRS) % 4 > 0
BY_HAND = {
    "cleaned up": "safe",
    "eight bits": "safe,quantize",
    "two blocks dropped": "safe,drop-blocks{count=2},safe",
    "half of the hidden units": "safe,prune-hidden{ratio=0.5},safe",
    "half of the hidden units, eight bits": "safe,prune-hidden{ratio=0.5},safe,quantize",
    "two blocks dropped, half of the hidden units, eight bits": "safe,drop-blocks{count=2},prune-hidden{ratio=0.5},safe,quantize",
}


def inputs(ids, mask):
    ids = ids.astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def calibration(folder, count):
    """A file of the first sentences that calibrate."""
    file = Path(folder) / f"sentences-{count}.npz"
    if not file.exists():
        data = np.load(common.SHARED / "data/sts-calibration.npz")
        np.savez(file, **inputs(data["input_ids"][:count], data["attention_mask"][:count]))
    return file


def rank(values):
    """Ranks of numbers, equal ones at their mean."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def spearman(path, pairs=slice(None)):
    """Spearman's correlation of cosines with the scores of people, times 100."""
    session = common.session(path)
    data = np.load(common.SHARED / "data/sts-test.npz")

    def embeddings(side):
        feeds = inputs(data[f"{side}_input_ids"][pairs], data[f"{side}_attention_mask"][pairs])
        feeds = {i.name: feeds[i.name] for i in session.get_inputs()}
        count = len(feeds["input_ids"])
        return np.concatenate([session.run(None, {k: v[i : i + 100] for k, v in feeds.items()})[0] for i in range(0, count, 100)])

    a, b = embeddings("a"), embeddings("b")
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return 100 * float(np.corrcoef(rank(cosines), rank(data["score"][pairs]))[0, 1])


def searched(batch, budget, out, samples):
    """The report of a search within one point of the metric."""
    score = shlex.join([sys.executable, str(Path(__file__).resolve()), "--score"]) + " {model}"
    return common.pare("search", MODEL, "-o", out, "--samples", samples, "--evaluate", score, "--max-metric-drop", "1.0",
                       "--budget", budget, "--batch", batch, "--restart")


def measured(made, samples):
    """A row for each description of a model that was made: its file, and its pipeline."""
    files = [file for file, _ in made.values()]
    times = [common.latency([MODEL, *files], batch=batch, time=3.0, rounds=40, samples=samples)[1:] for batch in BATCHES]
    rows = []
    for i, (label, (file, passes)) in enumerate(made.items()):
        row = {"": label, "passes": f"`{passes}`" if passes else "", "MB": f"{file.stat().st_size / 1e6:.1f}",
               "Spearman": f"{spearman(file):.2f}", "other pairs": f"{spearman(file, OTHERS):.2f}"}
        row |= {f"speed, batch {batch}": f"{1 / found[i][1]:.2f}" for batch, found in zip(BATCHES, times)}
        rows.append(row)
        print(*row.values(), file=sys.stderr, flush=True)
    return rows


def draw(figure, rows):
    """Speed at each batch size, one group of bars a model, with its correlation."""
    rows = sorted(rows, key=lambda row: float(row[f"speed, batch {BATCHES[0]}"]))
    ax = figure.subplots()
    at, height = np.arange(len(rows)), 0.8 / len(BATCHES)
    for i, batch in enumerate(BATCHES):
        speeds = [float(row[f"speed, batch {batch}"]) for row in rows]
        bars = ax.barh(at + 0.4 - height * (i + 0.5), speeds, height, label=f"batch {batch}", color=("tab:blue", "lightsteelblue")[i % 2])
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.set_yticks(at, [f"{row['']}\nSpearman {row['Spearman']}" for row in rows], fontsize=8)
    ax.set_xlabel("times as fast as the original")
    ax.legend(loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--score", metavar="MODEL")
    parser.add_argument("--search", metavar="BUDGET")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    given = parser.parse_args()
    if given.score:
        print(spearman(given.score, JUDGES))
        return
    with tempfile.TemporaryDirectory() as folder:
        samples = calibration(folder, COUNT)
        made = {"float": (MODEL, "")}
        for number, (label, passes) in enumerate({} if given.search else BY_HAND.items()):
            out = Path(folder) / f"{number}.onnx"
            report = common.pare("optimize", MODEL, "-o", out, "--passes", passes, "--samples", samples, "--no-prove")
            made[label] = out, passes
            print(passes, f"{report['seconds']:.0f} s", file=sys.stderr, flush=True)
        for batch in given.batch if given.search else []:
            out = Path(folder) / f"search-{batch}.onnx"
            report = searched(batch, given.search, out, samples)
            made[f"search, batch {batch}"] = out, report["pipeline"]
            print(report["pipeline"], f"{report['seconds'] / 60:.1f} min", file=sys.stderr, flush=True)
        if not given.search:
            out = Path(folder) / "dynamic.onnx"
            common.quantize_dynamic(MODEL, out)
            made["ONNX Runtime's `quantize_dynamic`"] = out, ""
        rows = common.merged("sentences", measured(made, samples), [""])
    common.write_csv("sentences", rows)
    common.picture("sentences", lambda figure: draw(figure, rows), (9, 5.5))
    text = (
        "Spearman's correlation × 100 over all 3,000 pairs, and over those that no search has seen. Speed is relative to the\n"
        "original, sentences of 32 tokens, one thread.\n\n![speed and correlation](sentences.svg)\n\n" + common.markdown(rows)
    )
    common.write_doc("sentences", "Sentence embeddings", text)


if __name__ == "__main__":
    main()
