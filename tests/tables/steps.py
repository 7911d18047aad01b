"""Latency beside multiply-accumulates: `prune-channels` with targets of MACs, and its numbers of channels.

    python3 tests/tables/steps.py [--quick] [MODEL…]

For each model and target: the share of the MACs that is kept, the latency beside the original's (one sample, one
thread, interleaved rounds), with the default `multiple=auto` and with `multiple=1`. A speed of .85 / MACs kept is
expected unless something else than channels bounds the model. Latency does not depend on the values of the weights,
so no samples are used, and every group loses the same share. `--quick` skips `multiple=1`. Models that are synthetic
(`syn_…`) are read from `PARE_MODELS`, where `../shared/tools/make_models.py` writes them."""
import argparse
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


def row(path, target, options, folder):
    """One model at one target, or why it was refused."""
    out = Path(folder) / f"{path.stem}-{target}-{options}.onnx"
    passes = f"safe,prune-channels{{macs={target},{options}}}"
    result = {"model": path.stem, "target": f"macs={target}", "options": options}
    report = common.pare("optimize", path, "-o", out, "--passes", passes, "--no-prove", check=False) or common.pare(
        "optimize", path, "-o", out, "--passes", passes.replace("}", ",streams=true}"), "--no-prove", check=False)
    if report is None:
        return result | {"macs": "", "latency": "refused", "speed × MACs": ""}
    macs = report["after"]["macs"] / report["before"]["macs"]
    latency = common.latency([path, out], rounds=60)[1][1]
    return result | {"macs": round(macs, 3), "latency": round(latency, 3), "speed × MACs": round(macs / latency, 3)}


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
