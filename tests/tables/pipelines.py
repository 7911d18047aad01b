"""Several lossy passes in one pipeline, each step compared with the one before.

    python3 tests/tables/pipelines.py

Calibrated as in `quantize.py`. Exact and rounding steps have to be equal to the model before them; of lossy ones the
signal-to-noise ratio is given. Quality as in `quantize.py`; latency of one sample on one thread, interleaved. Some ten
minutes."""
import sys
import tempfile
from pathlib import Path

import common
import quantize

PIPELINES = [
    ("digits-cnn", "safe,prune-channels{macs=0.7,min_agreement=0.97},safe,quantize{for=size,min_agreement=0.97}"),
    ("cifar-resnet20", "safe,prune-channels{macs=0.8,min_agreement=0.9},safe,quantize{min_agreement=0.97}"),
    ("cifar-resnet20", "safe,prune-channels{macs=0.5,streams=true},distill{epochs=3},safe,quantize"),
    ("minilm", "safe,prune-hidden{ratio=0.5},safe,quantize"),
]


def measured(name, passes, folder):
    """A row for a pipeline. It ends here if a step that should be equal is not."""
    samples, out = quantize.calibration(name, folder), folder / "result.onnx"
    path = quantize.path_of(name)
    report = common.pare("optimize", path, "-o", out, "--passes", passes, "--samples", samples, "--prove", "each")
    exact = [step for step in report["proof"]["each"] if step["effect"] != "lossy"]
    unequal = [step["passes"] for step in exact if step["outcome"] != "equal"]
    assert exact and not unequal, f"{passes}: not equal: {unequal}"
    ratios = lambda step: min(output["snr_db"] for output in step["outputs"] if output["snr_db"] is not None)
    lossy = [f"{step['passes']} {ratios(step):.1f}" for step in report["proof"]["each"] if step["effect"] == "lossy"]
    _, (_, ratio) = common.latency([path, out], time=3.0, rounds=40, samples=samples)
    return {
        "model": name, "pipeline": f"`{passes}`", "steps proven equal": len(exact), "lossy steps, SNR in dB": ", ".join(lossy),
        "quality": f"{quantize.quality(name, path, folder):.2f} → {quantize.quality(name, out, folder):.2f}",
        "bytes": f"{report['after']['bytes'] / report['before']['bytes']:.3f}", "speed": f"{1 / ratio:.2f}",
    }


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, passes in PIPELINES:
            rows.append(measured(name, passes, Path(folder)))
            print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    text = (
        "Every step that keeps the function is equal to the model before it, up to rounding; lossy steps lose what the\n"
        "signal-to-noise ratio of the logits or the embedding says. Quality is accuracy on test images in %, of minilm\n"
        "Spearman's correlation × 100.\n\n" + common.markdown(rows)
    )
    common.write_csv("pipelines", rows)
    common.write_doc("pipelines", "In one pipeline", text)


if __name__ == "__main__":
    main()
