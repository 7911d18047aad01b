#!/usr/bin/env python3
"""quantize.py [MODEL …]: eight and four bits beside ONNX Runtime's own quantizers, on the same samples.

Every model is first prepared by `safe`. Rows that a tool cannot make name its error. Without MODEL: digits-cnn,
cifar-resnet20, cifar-vit and minilm, which `PARE_MINILM` names; rows of models that are not given stay as they are. Needs onnx and onnxruntime; onnx_ir for its
MatMulNBitsQuantizer, torch for HQQ, and neural-compressor for GPTQ.
"""
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import common
import sentences

MODELS = ["digits-cnn", "cifar-resnet20", "cifar-vit", "minilm"]
#: Batch sizes of the latencies.
BATCHES = [1, 16]
#: Points of quality below which two forms are equal: some 100 of 10,000 images change their class, so that the sum of
#: changes for better and worse varies by their root.
NOISE = 0.1
#: Relative differences of latencies below which two forms are equal: what medians of interleaved rounds repeat within.
JITTER = 0.03
#: Sentences that calibrate, and pairs that are scored.
SENTENCES, PAIRS = 1000, 1000


def path_of(name):
    return sentences.MODEL if name == "minilm" else common.model(name)


def calibration(name, folder):
    """A file of samples that calibrate."""
    return sentences.calibration(folder, SENTENCES) if name == "minilm" else common.samples(name, folder, True)


def quality(name, path, folder):
    """The accuracy in %; of sentences, Spearman's correlation of cosines with the scores of people, times 100."""
    if name != "minilm":
        return common.accuracy(path, *common.tested(name, folder))
    return sentences.spearman(path, slice(PAIRS))


def by_pare(passes):
    def make(name, safe, out, folder):
        common.pare(
            "optimize", safe, "-o", out, "--passes", passes, "--samples", calibration(name, folder), "--no-prove",
        )

    return make


def reader(name, folder):
    """The samples that `pare` takes ranges from, for ONNX Runtime: all but a fifth, at most 1,000."""
    import onnxruntime.quantization as q

    arrays = np.load(calibration(name, folder))
    keys = [key for key in arrays.files if key != "labels"]
    count = len(arrays[keys[0]])
    count = min(1000, count - min(count // 5, 256))

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            batches = [{key: arrays[key][i : i + 50] for key in keys} for i in range(0, count, 50)]
            # All batches have one size, which some of its methods need.
            self.batches = iter([batch for batch in batches if len(batch[keys[0]]) == 50])

        def get_next(self):
            return next(self.batches, None)

    return Reader()


def static(method, reduce_range=False):
    """ONNX Runtime's static quantizer. Its documentation names seven bits (`reduce_range`) for processors without VNNI."""

    def make(name, safe, out, folder):
        import onnxruntime.quantization as q

        q.quantize_static(
            str(safe), str(out), reader(name, folder), quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod[method], reduce_range=reduce_range,
        )

    return make


def four_bits(config):
    def make(name, safe, out, folder):
        import onnx
        import onnxruntime.quantization.matmul_nbits_quantizer as q

        chosen = {
            "default": lambda: None,
            "HQQ": lambda: q.HQQWeightOnlyQuantConfig(block_size=32),
            "GPTQ": lambda: q.GPTQWeightOnlyQuantConfig(calibration_data_reader=reader(name, folder), block_size=32),
        }[config]()
        quantizer = q.MatMulNBitsQuantizer(
            onnx.load(str(safe)), block_size=32, is_symmetric=True, algo_config=chosen,
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))

    return make


ROWS = {
    "float": lambda _, safe, out, __: shutil.copy(safe, out),
    "pare, static": by_pare("quantize"),
    "pare, static, for size": by_pare("quantize{for=size}"),
    "pare, static, for size, full range": by_pare("quantize{for=size,full_range=true}"),
    "pare, static, smoothed": by_pare("smooth-activations,quantize{for=size}"),
    "pare, static, agreement 99.5 %": by_pare("quantize{min_agreement=0.995}"),
    "pare, dynamic": by_pare("quantize{method=dynamic}"),
    "pare, weights, 8 bits": by_pare("quantize{method=weights}"),
    "pare, weights, 8 bits in blocks": by_pare("quantize-weights{bits=8,accuracy_level=4}"),
    "pare, weights, 8 bits in large blocks": by_pare("quantize-weights{bits=8,block=128,accuracy_level=4}"),
    "pare, weights, 4 bits": by_pare("quantize-weights{bits=4,accuracy_level=4}"),
    "pare, weights, 4 bits, gptq": by_pare("quantize-weights{bits=4,accuracy_level=4,method=gptq}"),
    "ORT, quantize_static, MinMax": static("MinMax"),
    "ORT, quantize_static, MinMax, 7 bits": static("MinMax", reduce_range=True),
    "ORT, quantize_static, Entropy": static("Entropy"),
    "ORT, quantize_static, Percentile": static("Percentile"),
    "ORT, quantize_dynamic": lambda _, safe, out, __: common.quantize_dynamic(safe, out),
    "ORT, MatMulNBits": four_bits("default"),
    "ORT, MatMulNBits, HQQ": four_bits("HQQ"),
    "ORT, MatMulNBits, GPTQ": four_bits("GPTQ"),
}


def measured(name, folder):
    """A row for each form of a model, and the errors of those that could not be made."""
    safe = folder / f"{name}.onnx"
    common.pare("optimize", path_of(name), "-o", safe, "--passes", "safe", "--no-prove")
    made, errors = {}, []
    for number, (label, make) in enumerate(ROWS.items()):
        out = folder / f"{name}-{number}.onnx"
        try:
            make(name, safe, out, folder)
            made[label] = (out, quality(name, out, folder))
        except (Exception, SystemExit) as error:
            errors.append({"model": name, "form": label, "error": common.reason(error)})
        print(name, label, made.get(label, errors[-1:]), file=sys.stderr, flush=True)
    # Equal files take equal time: a quantizer that finds nothing to do writes the model that it got.
    files = {}
    for path, _ in made.values():
        files.setdefault(path.read_bytes(), path)
    times = []
    for batch in BATCHES:
        found = common.latency([*files.values()], batch=batch, time=3.0, rounds=40, samples=calibration(name, folder))
        times.append(dict(zip(files, found)))
    rows = []
    for label, (path, score) in made.items():
        row = {"model": name, "form": label, "quality": f"{score:.2f}", "bytes": path.stat().st_size}
        for batch, found in zip(BATCHES, times):
            seconds, ratio, *_ = found[path.read_bytes()]
            row[f"ms, batch {batch}"] = f"{1e3 * seconds:.3f}"
            row[f"speed, batch {batch}"] = f"{1 / ratio:.2f}"
        rows.append(row)
    return rows, errors


def beaten(rows, costs):
    """Forms of others that no form of ours equals both in quality and in one of these costs."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == model and row["form"].startswith(("pare", "float"))]
        theirs = [row for row in rows if row["model"] == model and row not in ours]
        for row in theirs:
            for cost in costs:
                least = float(row["quality"]) - NOISE
                most = float(row[cost]) * (1 if cost == "bytes" else 1 + JITTER)
                if not any(float(other["quality"]) >= least and float(other[cost]) <= most for other in ours):
                    found.append({"model": model, "form": row["form"], "by": f"quality and {cost}"})
    return found


def write(rows, errors):
    common.write_csv("quantize", rows)
    common.write_csv("quantize_errors", errors)
    text = (
        "Quality is accuracy on test images in %, for minilm Spearman's correlation with the scores of people × 100. Ranges\n"
        "come from the same unlabelled samples for all quantizers. Latencies are medians of interleaved rounds on one thread in\n"
        "ONNX Runtime, all of its optimizations on; speed is relative to float.\n\n" + common.markdown(rows)
    )
    front = beaten(rows, ["bytes", *(f"ms, batch {batch}" for batch in BATCHES)])
    text += f"\n## Beyond the front of `pare`\n\nQualities within {NOISE} points and latencies within {JITTER:.0%} are equal.\n\n"
    text += common.markdown(front) if front else "Nothing.\n"
    if errors:
        text += "\n## Not made\n\n" + common.markdown(errors)
    common.write_doc("quantize", "Eight and four bits", text)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or MODELS:
            made, failed = measured(name, Path(folder))
            # Written after each model. Those that are not given stay as they are.
            others = [[row for row in common.rows(table) if row["model"] != name] for table in ["quantize", "quantize_errors"]]
            in_order = [sorted(old + new, key=lambda row: MODELS.index(row["model"])) for old, new in zip(others, [made, failed])]
            write(*in_order)


if __name__ == "__main__":
    main()
