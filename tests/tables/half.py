"""Half floats: every float model in `float16`, and with as many nodes in float as 40 dB need.

    python3 tests/tables/half.py [MODEL.onnx | FOLDER…]

By default the fixtures, the models of the shared folder, and those of `zoo.py` that are there. Each result is loaded with
and without ONNX Runtime's optimizations and run on samples that did not choose its nodes; every output is compared with
the original's. Samples are those of `zoo.py`, or random. Some twenty minutes."""
import sys
import tempfile
from pathlib import Path

import numpy as np

import common
import zoo

TO = {"fp16": "convert-precision", "mixed": "convert-precision{to=mixed}"}
#: Samples that choose, and those that judge.
CHOOSING, JUDGING = 32, 4
#: Sizes of symbolic dimensions after the first, by model.
SIZES = {"ppocr-v1.1-det": 64, "silero-16k-op15": 576, "minilm-skeleton": 32}
#: What the inputs of models show: of noise, some outputs are empty.
INPUTS = {
    "basic-pitch-nmp": lambda count, random: zoo.sounds(43844)(count, random)[..., None],
    "ppocr-v1.1-det": zoo.images(3, 64, 64, scale=4.0, shift=-2.0),
    "ultraface-rfb-320": zoo.images(3, 240, 320, scale=2.0, shift=-1.0),
    "yunet-n-640": zoo.images(3, 640, 640, scale=255.0),
    "yolox-nano-3cls": zoo.images(3, 416, 416, scale=255.0),
    "fastestdet": zoo.images(3, 352, 352),
}
#: Integers are below this.
VOCABULARY = 100


def random_samples(path):
    """Arrays of samples for the inputs of a model. If an input has no axis of samples, all have one in front of theirs."""
    generator, arrays = np.random.default_rng(0), {}
    inputs = common.session(path).get_inputs()
    is_fixed = lambda given: not given.shape or isinstance(given.shape[0], int) and given.shape[0] > 0
    whole = any(map(is_fixed, inputs))
    batches = {given.shape[0] for given in inputs if given.shape and isinstance(given.shape[0], str)}
    size = lambda d, symbol: d if isinstance(d, int) and d > 0 else 1 if d in batches else symbol
    for given in inputs:
        shape = [size(d, SIZES.get(path.stem, 16)) for d in given.shape[1:]]
        if whole and given.shape:
            shape = [size(given.shape[0], 1), *shape]
        count = CHOOSING + JUDGING
        if path.stem in INPUTS:
            arrays[given.name] = INPUTS[path.stem](count, generator).astype(np.float32)
        elif given.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
            dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(given.type, np.float16)
            arrays[given.name] = generator.standard_normal([count, *shape]).astype(dtype)
        elif given.type == "tensor(bool)":
            arrays[given.name] = np.ones([count, *shape], bool)
        elif given.name == "sr":
            arrays[given.name] = np.full([count, *shape], 16000)
        else:
            dtype = np.dtype(given.type[len("tensor(") : -1])
            arrays[given.name] = generator.integers(0, VOCABULARY, [count, *shape]).astype(dtype)
    return arrays


def ratios(before, after, arrays):
    """The least signal-to-noise ratio of an output in dB over all samples that judge, with all optimizations and without."""
    least = np.inf
    for optimized in (True, False):
        old, new = common.session(before, optimized), common.session(after, optimized)
        signal, noise = {}, {}
        for i in range(CHOOSING, CHOOSING + JUDGING):
            rank = {given.name: len(given.shape) for given in old.get_inputs()}
            feeds = {name: np.asarray(x[i]) if x.ndim > rank[name] else x[i : i + 1] for name, x in arrays.items()}
            for output, a, b in zip(old.get_outputs(), old.run(None, feeds), new.run(None, feeds), strict=True):
                assert a.shape == b.shape, f"`{output.name}`: {a.shape} became {b.shape}"
                if a.dtype.kind == "f":
                    assert np.isfinite(b).all() or not np.isfinite(a).all(), f"`{output.name}` is not finite"
                    a, b = a.astype(np.float64), b.astype(np.float64)
                    signal[output.name] = signal.get(output.name, 0) + float((a**2).sum())
                    noise[output.name] = noise.get(output.name, 0) + float(((a - b) ** 2).sum())
        least = min([least, *(10 * np.log10(signal[name] / noise[name]) for name in noise if noise[name] and signal[name])])
    return least


def rows_of(path, folder):
    known = next((entry for entry in zoo.ZOO if entry.path == path), None)
    if known:
        known.samples = CHOOSING + JUDGING
        with np.load(known.write_samples(folder)) as data:
            arrays = dict(data)
    else:
        try:
            arrays = random_samples(path)
        except Exception as error:
            return [{"model": path.stem, "to": "", "bytes": "", "SNR, dB": "", "declined": f"the original: {str(error)[:120]}"}]
    samples = Path(folder) / "samples.npz"
    np.savez(samples, **{name: x[:CHOOSING] for name, x in arrays.items()})
    rows = []
    for to, passes in TO.items():
        out = Path(folder) / f"{to}.onnx"
        row = {"model": path.stem, "to": to, "bytes": "", "SNR, dB": "", "declined": ""}
        report, *_ = common.attempt("optimize", path, "-o", out, "--passes", passes, "--samples", samples, "--allow-unproven")
        if isinstance(report, str):
            rows.append(row | {"declined": report})
            continue
        try:
            found = f"{ratios(path, out, arrays):.1f}"
        except Exception as error:
            found = f"WRONG: {str(error).splitlines()[0][:160]}"
        rows.append(row | {"bytes": f"{report['after']['bytes'] / report['before']['bytes']:.3f}", "SNR, dB": found})
    return rows


def main():
    given = [Path(path) for path in sys.argv[1:]] or [common.ROOT / "fixtures", common.SHARED / "models", zoo.FOLDER]
    paths = [path for at in given for path in (sorted(at.glob("*.onnx")) if at.is_dir() else [at])]
    # Files of the same name are the same model.
    paths = list({path.stem: path for path in paths}.values())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            for row in rows_of(path, folder):
                print(*row.values(), sep=" | ", file=sys.stderr, flush=True)
                rows.append(row)
    rows = common.merged("half", rows, ["model", "to"])
    done = [row for row in rows if not row["declined"]]
    declined = [{key: row[key] for key in ("model", "to", "declined")} for row in rows if row["declined"]]
    common.write_csv("half", rows)
    text = (
        "The share of bytes, and the least signal-to-noise ratio of an output on samples that did not choose the nodes in float,\n"
        "with and without ONNX Runtime's optimizations. `mixed` keeps nodes in float until 40 dB are reached.\n\n"
        + common.markdown([{key: row[key] for key in row if key != "declined"} for row in done])
        + ("\n## Declined\n\n" + common.markdown(declined) if declined else "")
    )
    common.write_doc("half", "Half floats", text)


if __name__ == "__main__":
    main()
