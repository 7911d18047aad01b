"""Beside the tools that prune and fuse: every rival at its best documented use, on the same samples.

    python3 tests/tables/rivals.py [MODEL…]

onnxsim removes channels and heads by weights and activations over the whole network and refits the remaining weights in closed
form, or trains blocks; Torch-Pruning prunes cifar-resnet20 rebuilt in PyTorch, without and with training on unlabelled
images; ONNX Runtime's offline optimizer fuses transformers. Quality is accuracy in %, of minilm Spearman's
correlation × 100. Latency is that of one sample on one thread, interleaved. What a rival cannot make names its error. Needs
onnx, onnxruntime, onnxsim 0.8 and sympy, and in `PARE_TORCH` the interpreter of an environment with torch and
torch-pruning. Rows of models that are not given stay as they are. Some forty minutes."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import common
import quantize

MODELS = ["digits-cnn", "cifar-resnet20", "cifar-vit", "minilm"]
#: Samples that calibrate a rival, in batches.
COUNT, BATCH = 500, 50
#: Unlabelled images that train, and how often.
IMAGES, EPOCHS = 10_000, 8
CONVOLUTIONS = {
    "channels to 90 % of MACs": "prune-channels{macs=0.9}",
    "channels to 75 % of MACs": "prune-channels{macs=0.75}",
    "channels to 50 % of MACs": "prune-channels{macs=0.5,streams=true}",
    "one block dropped": "drop-blocks{count=1}",
}
TRANSFORMERS = {
    "hidden units −25 %": "prune-hidden{ratio=0.25}",
    "hidden units −50 %": "prune-hidden{ratio=0.5}",
    "hidden units −50 %, heads −25 %": "prune-hidden{ratio=0.5},prune-heads{ratio=0.25}",
    "one block dropped": "drop-blocks{count=1}",
}


def batches(name, folder):
    """The samples as onnxsim reads them."""
    with np.load(quantize.calibration(name, folder)) as data:
        arrays = {key: data[key][:COUNT] for key in data.files if key != "labels"}
    return [{key: x[i : i + BATCH] for key, x in arrays.items()} for i in range(0, COUNT, BATCH)]


def onnxsim(prune, tune):
    """A rival's model: simplified, pruned by `prune(model, samples)`, and repaired by `tune(original, pruned, samples)`."""

    def make(name, folder, out):
        import onnx
        import onnxsim as rival

        original, _ = rival.simplify(onnx.load(quantize.path_of(name)))
        samples = batches(name, folder)
        pruned = prune(rival, original, samples)
        if sum(np.prod(w.dims) for w in pruned.graph.initializer) == sum(np.prod(w.dims) for w in original.graph.initializer):
            raise ValueError("nothing was removed, without a word")
        onnx.save(tune(rival, original, pruned, samples), out)

    return make


def channels(share):
    return lambda rival, model, samples: rival.apply_structured_wanda_pruning(
        model, calibration_data=samples, sparsity=share, global_sparsity=True)


def heads(share):
    return lambda rival, model, samples: rival.apply_attention_head_wanda_pruning(model, calibration_data=samples, sparsity=share)


def refit(rival, original, pruned, samples):
    return rival.apply_pruning_finetune(original, pruned, calibration_data=samples)


def train(rival, original, pruned, samples):
    return rival.apply_block_finetune_all_blocks(original, refit(rival, original, pruned, samples), calibration_data=samples,
                                                 num_iterations=300)[0]


def fused(name, folder, out):
    from onnxruntime.transformers import optimizer

    kind = {"minilm": "bert", "cifar-vit": "vit"}.get(name)
    if kind is None:
        raise ValueError("it fuses transformers only")
    optimizer.optimize_model(str(quantize.path_of(name)), model_type=kind, opt_level=1).save_model_to_file(str(out))


def torch_pruning(share, trained):
    """Torch-Pruning, in an interpreter that has PyTorch."""

    def make(name, folder, out):
        if name != "cifar-resnet20":
            raise ValueError("only cifar-resnet20 is rebuilt in PyTorch")
        command = [os.environ.get("PARE_TORCH", sys.executable), common.HERE / "torch_pruning_resnet20.py", common.model(name), out, share]
        command += [common.unlabelled(name, folder, IMAGES), EPOCHS] if trained else []
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if run.returncode:
            raise ValueError(run.stderr.strip())

    return make


RIVALS = {
    "onnxsim, channels −10 %, refitted": onnxsim(channels(0.1), refit),
    "onnxsim, channels −25 %, refitted": onnxsim(channels(0.25), refit),
    "onnxsim, channels −50 %, refitted": onnxsim(channels(0.5), refit),
    "onnxsim, channels −25 %, blocks trained": onnxsim(channels(0.25), train),
    "onnxsim, heads −25 %, refitted": onnxsim(heads(0.25), refit),
    "Torch-Pruning, 75 % of MACs": torch_pruning(0.75, False),
    "Torch-Pruning, 50 % of MACs": torch_pruning(0.5, False),
    "Torch-Pruning, 50 % of MACs, trained": torch_pruning(0.5, True),
    "ORT, fused offline": fused,
    "ORT, quantize_dynamic": lambda name, _, out: common.quantize_dynamic(quantize.path_of(name), out),
}


def ours(passes, samples=None):
    def make(name, folder, out):
        given = samples() if samples else quantize.calibration(name, folder)
        common.pare("optimize", quantize.path_of(name), "-o", out, "--passes", passes, "--samples", given, "--no-prove")

    return make


def measured(name, folder):
    """A row for each model that was made, and the errors of others."""
    of_kind = TRANSFORMERS if name in ("minilm", "cifar-vit") else CONVOLUTIONS
    forms = {"float": ours("safe")}
    forms |= {f"pare, {label}": ours(f"safe,{passes},safe") for label, passes in of_kind.items()}
    forms |= {f"pare, {label}, eight bits": ours(f"safe,{passes},safe,quantize") for label, passes in of_kind.items()}
    if name == "cifar-resnet20":
        passes = f"safe,{CONVOLUTIONS['channels to 50 % of MACs']},distill{{epochs={EPOCHS}}},safe"
        forms["pare, channels to 50 % of MACs, trained"] = ours(passes, lambda: common.unlabelled(name, folder, IMAGES))
    made, errors = {}, []
    for number, (label, make) in enumerate([*forms.items(), *RIVALS.items()]):
        out = folder / f"{name}-{number}.onnx"
        try:
            make(name, folder, out)
            made[label] = out, quantize.quality(name, out, folder)
        except (Exception, SystemExit) as error:
            errors.append({"model": name, "form": label, "why": common.reason(error)})
        print(name, label, made.get(label, errors[-1:]), file=sys.stderr, flush=True)
    times = common.latency([path for path, _ in made.values()], time=3.0, rounds=40, samples=quantize.calibration(name, folder))
    rows = [
        {"model": name, "form": label, "quality": f"{score:.2f}", "bytes": path.stat().st_size,
         "ms, batch 1": f"{1e3 * seconds:.3f}", "speed": f"{1 / ratio:.2f}"}
        for (label, (path, score)), (seconds, ratio) in zip(made.items(), times)
    ]
    return rows, errors


def draw(figure, rows):
    """Quality against speed, a picture for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    for ax, model in zip(np.atleast_1d(figure.subplots(1, len(models))), models):
        for start, mark, color in (("float", "*", "black"), ("pare", "o", "tab:blue"), ("onnxsim", "s", "tab:orange"), ("Torch-Pruning", "D", "tab:red"), ("ORT", "^", "tab:green")):
            at = [(float(r["speed"]), float(r["quality"])) for r in rows if r["model"] == model and r["form"].startswith(start)]
            if at:
                ax.plot(*zip(*at), mark, color=color, label=start)
        ax.set_title(model)
        ax.set_xlabel("times as fast as float")
    figure.axes[0].set_ylabel("quality")
    figure.axes[0].legend()


def main():
    rows, errors = [], []
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            made, failed = measured(name, Path(folder))
        rows += made
        errors += failed
    measured_now = {row["model"] for row in rows}
    rows += [row for row in common.merged("rivals", [], ["model", "form"]) if row["model"] not in measured_now]
    errors += [row for row in common.merged("rivals_errors", [], ["model", "form"]) if row["model"] not in measured_now]
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    common.write_csv("rivals", rows)
    if errors:
        common.write_csv("rivals_errors", errors)
    common.picture("rivals", lambda figure: draw(figure, rows), (4 * len(MODELS), 4))
    front = quantize.beaten(rows, ["ms, batch 1"])
    text = (
        "Quality is accuracy on test images in %, of minilm Spearman's correlation × 100. Latency is that of one sample on one\n"
        "thread, interleaved.\n\n![quality against speed](rivals.svg)\n\n" + common.markdown(rows)
        + f"\n## Beyond the front of `pare`\n\nQualities within {quantize.NOISE} points and latencies within {quantize.JITTER:.0%} are equal.\n\n"
        + (common.markdown(front) if front else "Nothing.\n")
        + ("\n## Not made\n\n" + common.markdown(errors) if errors else "")
    )
    common.write_doc("rivals", "Beside the tools that prune and fuse", text)


if __name__ == "__main__":
    main()
