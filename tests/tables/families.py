"""Every family of lossy passes on real models: what is removed, what it costs and gains, or why it is declined.

    python3 tests/tables/families.py [--families FAMILY…] [MODEL…]

The models are those of `zoo.py`, which fetches them. Each result runs beside its original in ONNX Runtime on one sample,
and on three where the batch size is free, and has to give outputs of the same shapes. Speed is that of one sample on one
thread as `pare` reports it; memory is the peak of its process. Rows that are not measured stay as they are. Some two
hours for all."""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import common
import zoo

#: Samples that results are compared on.
JUDGES = 4
FAMILIES = {
    "cleaned up": "safe",
    "channels": "safe,prune-channels{macs=0.75},safe",
    "hidden units": "safe,prune-hidden{ratio=0.3},safe",
    "heads": "safe,prune-heads{ratio=0.2},safe",
    "activations": "safe,remove-activations{count=2},safe",
    "blocks": "safe,drop-blocks{count=1},safe",
    "tokens": "safe,merge-tokens{r=4},safe",
    "zeros": "safe,sparsify{ratio=0.5},safe",
    "channels, trained": "safe,prune-channels{macs=0.75},distill{steps=20,batch=8},safe",
    "eight bits": "safe,quantize",
    "four bits": "safe,quantize-weights",
    "half floats": "safe,convert-precision",
}


def signal_to_noise(entry, out, samples):
    """The signal-to-noise ratio of the first output in dB on the last samples.

    Raises if the shape of an output differs or a number is not finite, at one sample and at three where that many fit."""
    before, after = common.session(entry.path), common.session(out)
    with np.load(samples) as data:
        arrays = {i.name: data[i.name] for i in before.get_inputs()}
    fixed = any(isinstance(i.shape[0], int) for i in before.get_inputs())
    signal = noise = 0.0
    for first in [slice(-i, 1 - i or None) for i in range(1, JUDGES + 1)] + ([] if fixed else [slice(-3, None)]):
        feeds = {name: x[first] for name, x in arrays.items()}
        old, new = before.run(None, feeds), after.run(None, {i.name: feeds[i.name] for i in after.get_inputs()})
        for a, b in zip(old, new, strict=True):
            assert a.shape == b.shape, f"{a.shape} became {b.shape}"
            assert np.isfinite(b).all() or not np.isfinite(a).all(), f"an output of shape {b.shape} is not finite"
        signal += float((old[0].astype(np.float64) ** 2).sum())
        noise += float(((old[0] - new[0]).astype(np.float64) ** 2).sum())
    return 10 * np.log10(signal / noise) if noise else np.inf


def unchanged(report, passes):
    """The reason why the pass of a family changed nothing, if it did not."""
    name = passes.split(",")[1].split("{")[0] if "," in passes else ""
    step = next((step for step in report["steps"] if step["pass"] == name), None)
    if step is None or step["patches"]:
        return ""
    return f"`{name}`: " + next(iter(step["declined"]), "there is nothing to change").replace("|", "\\|")


def row(entry, family, folder, samples):
    out = Path(folder) / "out.onnx"
    report, seconds, memory = common.attempt("optimize", entry.path, "-o", out, "--passes", FAMILIES[family], "--samples", samples)
    result = {"model": entry.name, "family": family, "MACs": "", "bytes": "", "speed": "", "SNR, dB": "",
              "seconds": f"{seconds:.0f}", "peak, MB": f"{memory:.0f}", "declined": ""}
    if isinstance(report, str):
        return result | {"declined": report}
    if why := unchanged(report, FAMILIES[family]):
        return result | {"declined": why}
    before, after = report["before"], report["after"]
    try:
        ratio = f"{signal_to_noise(entry, out, samples):.1f}"
    except Exception as error:
        ratio = f"WRONG: {str(error).splitlines()[0]}"
    speed = report["latency"] and f"{report['latency']['speed']['median']:.2f}"
    return result | {"MACs": f"{after['macs'] / max(before['macs'], 1):.2f}", "bytes": f"{after['bytes'] / before['bytes']:.2f}",
                     "speed": speed or "", "SNR, dB": ratio}


def place(row):
    """The place of a row in the table."""
    return row["model"], list(FAMILIES).index(row["family"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("models", nargs="*", default=[entry.name for entry in zoo.ZOO], help="or `none`, for the document alone")
    given = parser.parse_args()
    zoo.fetch()
    for entry in zoo.ZOO:
        if entry.name not in given.models:
            continue
        with tempfile.TemporaryDirectory() as folder:
            samples = entry.write_samples(folder)
            rows = []
            for family in given.families:
                rows.append(row(entry, family, folder, samples))
                print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
        common.write_csv("families", sorted(common.merged("families", rows, ["model", "family"]), key=place))
    rows = sorted(common.merged("families", [], ["model", "family"]), key=place)
    done = [r for r in rows if not r["declined"]]
    text = (
        "What remains of multiply-accumulates and bytes, and how many times as fast the result is, one sample on one thread.\n"
        "SNR is that of the first output on four samples. Seconds and peak of memory are those of the whole command, proof\n"
        f"included. {len(rows)} runs: {len(done)} wrote a model, which gives outputs of the same shapes at one and at three\n"
        "samples where the batch size is free; the others say why not.\n\n"
    )
    columns = [key for key in rows[0] if key != "declined"]
    text += common.markdown([{key: r[key] for key in columns} for r in done])
    text += "\n## Declined\n\n" + common.markdown([{k: r[k] for k in ("model", "family", "declined")} for r in rows if r["declined"]])
    common.write_doc("families", "Families of passes on real models", text)


if __name__ == "__main__":
    main()
