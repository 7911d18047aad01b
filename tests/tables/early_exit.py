"""Samples that leave early: how many, whether they keep their class, and what that does to the mean latency.

`add-early-exit` sees the calibration images without labels; the figures come from the test images. Easy samples are those
that leave, hard ones those that stay. One sample at a time, one thread, ratios to the whole model in interleaved rounds.
"""
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from common import latency, markdown, model, pare, picture, samples, write_csv, write_doc

MODELS = ["digits-cnn", "digits-vit"]
AGREEMENTS = [0.99, 0.995, 0.999]
#: Samples with which latency is measured, of each kind.
TIMED = 200


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"])


def taken(path, images, name):
    """Whether each sample leaves, and the answers."""
    graph = onnx.load(path)
    decision = next(n for n in graph.graph.node if n.op_type == "If").input[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(decision, onnx.TensorProto.BOOL, []))
    run = session(graph.SerializeToString())
    answers = [run.run(None, {name: images[i : i + 1]}) for i in range(len(images))]
    return np.array([bool(a[1]) for a in answers]), np.concatenate([a[0] for a in answers])


def rows(name, folder):
    test = dict(np.load(samples(name, folder)))
    key = next(k for k in test if k != "labels")
    images, labels = test[key], test["labels"]
    whole = folder / f"{name}.onnx"
    pare("optimize", model(name), "-o", whole, "--no-prove")
    reference = session(whole).run(None, {key: images})[0].argmax(1)
    for agreement in AGREEMENTS:
        early = folder / f"{name}-{agreement}.onnx"
        options = f"agreement={agreement},allow_interface_change=true"
        report = pare("optimize", whole, "-o", early, "--passes", f"add-early-exit{{{options}}}", "--samples",
                      samples(name, folder, calibration=True), "--test", samples(name, folder), check=False)
        if report is None:
            print(f"{name} {agreement}: no exit")
            continue
        left, scores = taken(early, images, key)
        top = scores.argmax(1)
        speed = {}
        for kind, chosen in (("all", np.ones_like(left)), ("easy", left), ("hard", ~left)):
            if chosen.any():
                np.savez(folder / "part.npz", **{key: images[chosen][:TIMED]})
                speed[kind] = 1 / latency([whole, early], samples=folder / "part.npz", rounds=40)[1][1]
        figures = next(s for s in report["steps"] if s["pass"] == "add-early-exit")["figures"]
        yield {"model": name, "agreement asked": agreement, "agreement": (top == reference).mean(),
               "accuracy before": (reference == labels).mean(), "accuracy": (top == labels).mean(),
               "leave early": left.mean(), "MACs": figures["mean MACs relative to the original"],
               "speed": speed["all"], "speed easy": speed.get("easy", np.nan), "speed hard": speed.get("hard", np.nan)}


def shown(row):
    ratio = lambda key, x: f"{x:.2f}×" if key.startswith("speed") else f"{100 * x:.1f} %"
    return {k: ratio(k, v) if isinstance(v, float) else v for k, v in row.items()}


def draw(figure, table):
    axes = figure.add_subplot()
    names = [f"{r['model']}\n{r['agreement asked']}" for r in table]
    for shift, key in ((-0.25, "speed easy"), (0, "speed"), (0.25, "speed hard")):
        axes.bar(np.arange(len(table)) + shift, [r[key] for r in table], 0.25, label=key.replace("speed", "").strip() or "all")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(table)), names)
    axes.set_ylabel("speed, whole model = 1")
    axes.legend(title="samples")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        table = [row for name in MODELS for row in rows(name, Path(folder))]
    table = [{k: float(v) if isinstance(v, (float, np.floating)) else v for k, v in row.items()} for row in table]
    write_csv("early_exit", [{k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in table])
    text = f"{__doc__.strip()}\n\n{markdown([shown(r) for r in table])}\n![speed](early_exit.svg)\n"
    write_doc("early_exit", "Early exits", text)
    picture("early_exit", lambda figure: draw(figure, table))
    print(markdown([shown(r) for r in table]))
