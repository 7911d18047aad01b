"""Latency beside multiply-accumulates: `prune-channels` with targets of MACs, and its numbers of channels.

    python3 tests/tables/steps.py [--quick] [MODEL…]

For each model and target: the share of the MACs that is kept, the latency beside the original's (one sample, one
thread, interleaved rounds), with the default `multiple=auto` and with `multiple=1`. A speed of .85 / MACs kept is
expected unless something else than channels bounds the model: `at best` is speed × MACs if the time outside of the
kernels of convolutions and matrix products stays as it is, by ONNX Runtime's profile of the original. Latency does not
depend on the values of the weights, so no samples are used, and every group loses the same share. `--quick` skips
`multiple=1`. Models that are synthetic (`syn_…`) are read from `PARE_MODELS`, where `../shared/tools/make_models.py`
writes them."""
import argparse
import functools
import json
import os
import sys
import tempfile
from pathlib import Path

import common

MODELS = ["cifar-resnet20", "cifar-mbv2", "digits-cnn", "syn_resnet18_bn", "syn_mobilenetv2_bn", "ultraface-rfb-320", "yunet-n-640", "yolox-nano-3cls"]
TARGETS = (0.8, 0.667, 0.5)


def found(name):
    made = Path(os.environ.get("PARE_MODELS", ".")) / f"{name}.onnx"
    return made if made.exists() else common.model(name)


@functools.cache
def outside(path):
    """The share of a run that is not in kernels of convolutions and matrix products."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {i.name: np.random.rand(*(d if isinstance(d, int) else 1 for d in i.shape)).astype(np.float32) for i in session.get_inputs()}
        for _ in range(200):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event["dur"] for event in events if event["name"] == "model_run"]
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    inside = sum(e["dur"] for e in kernels if any(kind in e["args"]["op_name"] for kind in ("Conv", "Gemm", "MatMul")))
    return 1 - inside / sum(runs)


def row(path, target, options, folder):
    """One model at one target, or why it was refused."""
    out = Path(folder) / f"{path.stem}-{target}-{options}.onnx"
    passes = f"safe,prune-channels{{macs={target},{options}}}"
    result = {"model": path.stem, "target": f"macs={target}", "options": options}
    report = common.pare("optimize", path, "-o", out, "--passes", passes, "--no-prove", check=False) or common.pare(
        "optimize", path, "-o", out, "--passes", passes.replace("}", ",streams=true}"), "--no-prove", check=False)
    if report is None:
        return result | {"macs": "", "latency": "refused", "speed × MACs": "", "at best": ""}
    macs = report["after"]["macs"] / report["before"]["macs"]
    latency = common.latency([path, out], rounds=60)[1][1]
    return result | {"macs": round(macs, 3), "latency": round(latency, 3), "speed × MACs": round(macs / latency, 3),
                     "at best": round(macs / (outside(path) + (1 - outside(path)) * macs), 3)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("models", nargs="*", default=MODELS)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            for target in TARGETS:
                for options in ("multiple=auto",) if given.quick else ("multiple=auto", "multiple=1"):
                    rows.append(row(found(name), target, options, folder))
                    print(*rows[-1].values(), file=sys.stderr, flush=True)
    if given.models == MODELS:
        common.write_csv("steps", rows)
        common.write_doc("steps", "Channel steps", common.markdown(rows))


if __name__ == "__main__":
    main()
