"""What zeros among the weights, and eight bits for each, cost and buy: criteria of sparsity against each other, and INT8
against ONNX Runtime's own quantizer on the same images.

    python3 tests/tables/weights.py [--quick]
"""
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import common

QUICK = "--quick" in sys.argv
RATIOS = [0.5, 0.7, 0.8, 0.9]
#: All at one share of every layer, so that criteria alone differ; `obs` also as it is by default.
CRITERIA = [
    ("magnitude", "criterion=magnitude,scope=layer,refit=none"),
    ("wanda", "criterion=wanda,scope=row,refit=none"),
    ("obd", "criterion=obd,scope=layer,refit=none"),
    ("obs, no refit", "criterion=obs,scope=layer,refit=none"),
    ("magnitude, refit", "criterion=magnitude,scope=layer"),
    ("wanda, refit", "criterion=wanda,scope=row"),
    ("obs, refit", "criterion=obs,scope=layer"),
    ("obs, refit, shares by drift (default)", "criterion=obs"),
]


def optimize(name, folder, passes, out):
    """The report of a pipeline and the accuracy of its result in %; `None` if it cannot be made."""
    calibration = common.samples(name, folder, True)
    report = common.pare(
        "optimize", common.model(name), "-o", out, "--passes", passes, "--samples", calibration, "--no-prove", check=False
    )
    return report and (report, common.accuracy(out, *common.tested(name, folder)))


def sparsity(folder):
    rows = []
    for label, options in CRITERIA:
        row = {"cifar-resnet20": label}
        for ratio in RATIOS:
            made = optimize("cifar-resnet20", folder, f"safe,sparsify{{ratio={ratio},{options}}}", folder / "s.onnx")
            row[f"{ratio:.0%} zeros"] = "-" if made is None else f"{made[1]:.2f}"
            print(label, ratio, row[f"{ratio:.0%} zeros"], file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def patterns(folder):
    rows = []
    for label, options in [
        ("free, 50 %", "ratio=0.5"), ("2:4", "pattern=2:4"), ("2:4, exact", "pattern=2:4,exact=true"),
        ("1:4", "pattern=1:4"), ("blocks of 4, 50 %", "pattern=block4,ratio=0.5"), ("free, 90 %", "ratio=0.9"),
    ]:
        made = optimize("cifar-resnet20", folder, f"safe,sparsify{{{options}}}", folder / "s.onnx")
        if made is None:
            continue
        report, score = made
        stored = report["weights"]
        times = common.latency([common.model("cifar-resnet20"), folder / "s.onnx"])
        rows.append({
            "pattern": label,
            "accuracy": f"{score:.2f}",
            "not zero": f"{stored['density'][1]:.1%}",
            "bytes": report["after"]["bytes"],
            "after zstd": stored["zstd_bytes"][1],
            "speed": f"{1 / times[1][1]:.2f}",
        })
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def static_by_ort(name, safe, calibration, out):
    """ONNX Runtime's own static quantizer, on the same folded model and images."""
    import onnxruntime.quantization as q

    arrays = np.load(calibration)
    key = next(k for k in arrays.files if k != "labels")
    # Those that `pare` takes ranges from: it holds a fifth out, at most 256.
    count = len(arrays[key])
    images = arrays[key][: min(1000, count - min(count // 5, 256))]

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{key: images[i : i + 100]} for i in range(0, len(images), 100)])

        def get_next(self):
            return next(self.batches, None)

    q.quantize_static(
        str(safe), str(out), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    )


def int8(folder):
    rows = []
    for name in ["cifar-resnet20", "digits-cnn"]:
        calibration = common.samples(name, folder, True)
        made = {}
        for label, passes in [
            ("float", "safe"), ("pare, mse", "safe,quantize{for=size}"), ("pare, minmax", "safe,quantize{for=size,ranges=minmax}"),
            ("pare, percentile", "safe,quantize{for=size,ranges=percentile}"),
            ("pare, mse, biases as they were", "safe,quantize{for=size,correct_bias=false}"),
            ("pare, weights alone", "safe,quantize{method=weights}"),
            ("pare, channels + INT8", "safe,prune-channels{macs=0.7,multiple=16},quantize{for=size}"),
            ("pare, 50 % zeros + INT8", "safe,sparsify{ratio=0.5},quantize{for=size}"),
        ]:
            out = folder / f"{name}-{len(made)}.onnx"
            found = optimize(name, folder, passes, out)
            if found is not None:
                made[label] = (out, found[1])
        ort = folder / f"{name}-ort.onnx"
        static_by_ort(name, made["float"][0], calibration, ort)
        made["ONNX Runtime, quantize_static"] = (ort, common.accuracy(ort, *common.tested(name, folder)))
        times = common.latency([path for path, _ in made.values()], time=3.0, rounds=40)
        for (label, (path, score)), (seconds, ratio) in zip(made.items(), times):
            rows.append({
                "model": name, "weights": label, "accuracy": f"{score:.2f}", "bytes": os.path.getsize(path),
                "ms": f"{1e3 * seconds:.3f}", "speed": f"{1 / ratio:.2f}",
            })
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def snr(name, folder):
    """Per layer, the remaining weights at equal storage: `b` bits against a share of `1 - b/16` of zeros."""
    import onnx
    from onnx import numpy_helper

    safe = folder / "safe.onnx"
    common.pare("optimize", common.model(name), "-o", safe, "--passes", "safe", "--no-prove")
    weights = [numpy_helper.to_array(i) for i in onnx.load(safe).graph.initializer if len(i.dims) >= 2]
    rows = []
    for bits in [8, 6, 4, 3, 2]:
        noise, cut, signal = 0.0, 0.0, 0.0
        for w in weights:
            w = w.reshape(w.shape[0], -1).astype(np.float64)
            top = 2 ** (bits - 1) - 1
            scale = np.maximum(np.abs(w).max(1, keepdims=True) / top, 1e-30)
            noise += np.sum((w - scale * np.round(w / scale)) ** 2)
            order = np.sort(np.abs(w).ravel())
            cut += np.sum(order[: int(len(order) * (1 - bits / 16))] ** 2)
            signal += np.sum(w**2)
        rows.append({
            "bits": bits, "quantized, dB": f"{10 * np.log10(signal / noise):.1f}",
            "zeros": f"{1 - bits / 16:.0%}", "pruned, dB": f"{10 * np.log10(signal / cut):.1f}",
        })
    return rows


def main():
    folder = Path(tempfile.mkdtemp())
    eight = int8(folder)
    ratios = snr("cifar-resnet20", folder)
    shapes = patterns(folder) if not QUICK else []
    zeros = sparsity(folder) if not QUICK else []
    text = (
        "Accuracy on 10,000 test images of CIFAR-10 (500 of digits); nothing sees a label before the test. "
        "Speed is that of one sample on one thread in ONNX Runtime, all of its optimizations on, against the float model.\n\n"
        "## Eight bits\n\nRanges come from the same unlabelled images for both quantizers, 1,000 (410 of digits); pare corrects biases on all.\n\n"
        + common.markdown(eight)
    )
    if zeros:
        text += "\n## Which weights go\n\nAccuracy by the share of zeros, everything after `safe`.\n\n" + common.markdown(zeros)
    if shapes:
        text += (
            "\n## In which pattern\n\nThe file holds zeros like other numbers; zstd does not. ONNX Runtime multiplies by them: "
            "no zeros make it faster, wherever they are.\n\n" + common.markdown(shapes)
        )
    text += (
        "\n## Signal and noise at equal storage\n\nWhat rounding to `b` bits leaves of the weights of cifar-resnet20, and what "
        "magnitude pruning to a share of `b/16` does (16 bits for each number that stays).\n\n" + common.markdown(ratios)
    )
    common.write_doc("weights", "Zeros and bits", text)
    common.write_csv("weights", eight)

    def draw(figure):
        axes = figure.subplots()
        for row in zeros:
            points = [(float(key.split("%")[0]), float(value)) for key, value in list(row.items())[1:] if value != "-"]
            axes.plot(*zip(*points), marker="o", label=row["cifar-resnet20"])
        axes.set(xlabel="zeros, %", ylabel="accuracy on CIFAR-10, %", title="cifar-resnet20, no training")
        axes.legend()

    if zeros:
        common.picture("weights", draw)


if __name__ == "__main__":
    main()
