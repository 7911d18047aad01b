"""What the scripts of this folder share: running `pare`, reading its JSON reports, writing tables and pictures."""
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARE = os.environ.get("PARE", str(ROOT / "target/release/pare"))
#: Models and data that are too large for the repository; `PARE_SHARED` names another folder.
SHARED = Path(os.environ.get("PARE_SHARED", ROOT.parent / "shared"))


#: Where `PARE_KEEP` names a folder, models that were made and their outputs stay there: a second run only takes times.
KEEP = os.environ.get("PARE_KEEP")


def model(name):
    """A model of the fixtures, or of the shared folder."""
    for folder in (ROOT / "fixtures", SHARED / "models"):
        if (folder / f"{name}.onnx").exists():
            return folder / f"{name}.onnx"
    sys.exit(f"{name}.onnx is neither in fixtures nor in {SHARED / 'models'}")


def samples(name, folder, calibration=False):
    """A .npz file of samples for a model: normalised as in its training; labelled where they are for testing."""
    if name.startswith("digits"):
        return ROOT / "fixtures" / ("digits-calibration.npz" if calibration else "digits.npz")
    out = Path(folder) / f"{name}-{'calibration' if calibration else 'test'}.npz"
    if not out.exists():
        flags = ["--calibration", "--count", "2000"] if calibration else []
        subprocess.run([sys.executable, SHARED / "tools/make_samples.py", name, out, *flags], check=True, stdout=sys.stderr)
    return out


def unlabelled(name, folder, count):
    """A .npz file of unlabelled samples: of digits those that calibrate, of CIFAR-10 `count` images; these need Pillow."""
    if name.startswith("digits"):
        return samples(name, folder, True)
    out = Path(folder) / f"{name}-unlabelled-{count}.npz"
    if not out.exists():
        make = [sys.executable, SHARED / "tools/make_samples.py", name, out, "--unlabelled", "--count", str(count)]
        subprocess.run(make, check=True, stdout=sys.stderr)
    return out


def pare(*args, check=True):
    """The JSON report of a run of `pare`; `None` where it failed and `check` is false."""
    args = list(map(str, args))
    kept = KEEP and "-o" in args and made_before(args)
    if kept and kept.with_suffix(".json").exists():
        shutil.copy(kept, args[args.index("-o") + 1])
        return json.loads(kept.with_suffix(".json").read_text())
    run = subprocess.run([PARE, *args, "--json", "--quiet"], capture_output=True, text=True)
    if run.returncode != 0:
        if check:
            sys.exit(f"pare {' '.join(args)}\nexit {run.returncode}\n{run.stderr}")
        return None
    if kept:
        shutil.copy(args[args.index("-o") + 1], kept)
        kept.with_suffix(".json").write_text(run.stdout)
    return json.loads(run.stdout)


def made_before(args):
    """Where the output of a command is kept: named after its options and the content of its input files."""
    out = args.index("-o") + 1
    digest = hashlib.sha256()
    for i, arg in enumerate(args):
        content = Path(arg).read_bytes() if i != out and os.path.isfile(arg) else arg.encode()
        digest.update(b"" if i == out else hashlib.sha256(content).digest())
    Path(KEEP).mkdir(parents=True, exist_ok=True)
    return Path(KEEP) / f"{digest.hexdigest()[:24]}.onnx"


def tested(name, folder):
    """The samples that a model is tested on, and their labels."""
    with np.load(samples(name, folder)) as data:
        return next(data[key] for key in data.files if key != "labels"), data["labels"]


def attempt(*args):
    """What a run of `pare` took: the JSON report, or one sentence where it failed; seconds; and the peak of memory in MB."""
    start = time.time()
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen([PARE, *map(str, args), "--json", "--quiet"], stdout=report, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds, peak = time.time() - start, usage.ru_maxrss / 1e3
        report.seek(0)
        errors.seek(0)
        if child.returncode == 0:
            return json.loads(report.read()), seconds, peak
        why = errors.read().decode().strip().split("\n")[0].removeprefix("error: ").replace("|", "\\|")
    return (why if child.returncode == 2 else f"EXIT {child.returncode}: {why}"), seconds, peak


def reason(error):
    """One line of what an exception says, for a cell of a table."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("error")), lines[-1] if lines else type(error).__name__)
    return why[:160].replace("|", "/")


def session(path, optimized=True):
    """A model in ONNX Runtime as deployed: all optimizations on; or without any."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, data, batch=250):
    """The first output for all samples in ONNX Runtime as deployed."""
    kept = KEEP and Path(KEEP) / f"{hashlib.sha256(Path(path).read_bytes() + data.tobytes()).hexdigest()[:24]}.npy"
    if kept and kept.exists():
        return np.load(kept)
    loaded = session(path)
    name = loaded.get_inputs()[0].name
    found = np.concatenate([loaded.run(None, {name: data[i : i + batch]})[0] for i in range(0, len(data), batch)])
    if kept:
        np.save(kept, found)
    return found


def accuracy(path, data, labels):
    """The share of right classes, in %."""
    return 100 * float((outputs(path, data).argmax(1) == labels).mean())


def compared(first, scores, labels):
    """Accuracy and agreement with the first model's classes, in %, and the mean KL divergence from its outputs."""
    log = lambda x: x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    p, q = log(first.astype(np.float64)), log(scores.astype(np.float64))
    top = scores.argmax(-1)
    return {
        "accuracy": 100 * float((top == labels).mean()),
        "agreement": 100 * float((top == first.argmax(-1)).mean()),
        "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
    }


def latency(models, batch=1, threads=1, time=2.0, rounds=30, samples=None):
    """Seconds of each model, and its ratio to the first, measured in turn with all of ONNX Runtime's optimizations."""
    given = ["--samples", samples] if samples else []
    report = pare("bench", *models, "--batch", batch, "--threads", threads, "--time", time, "--rounds", rounds, *given)
    return [(m["median_s"], m["ratio"]) for m in report["models"]]


def quantize_dynamic(model, out):
    """ONNX Runtime's dynamic quantizer."""
    import onnxruntime.quantization as q

    q.quantize_dynamic(str(model), str(out), per_channel=True, weight_type=q.QuantType.QInt8)


def write_csv(name, rows):
    """`name.csv` in this folder, from dictionaries with the same keys; no file if there are none."""
    if not rows:
        (HERE / f"{name}.csv").unlink(missing_ok=True)
        return
    with open(HERE / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rows(name):
    """The rows of `name.csv`; none if there is no such table."""
    path = HERE / f"{name}.csv"
    with open(path, newline="") if path.exists() else io.StringIO() as file:
        return [*csv.DictReader(file)]


def merged(name, new, keys):
    """`new` rows in place of those of `name.csv` with the same values of `keys`, sorted by these: part of a table is new."""
    all_rows = {tuple(row[key] for key in keys): row for row in [*rows(name), *new]}
    return [all_rows[key] for key in sorted(all_rows)]


def markdown(rows):
    """A table from dictionaries with the same keys."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_doc(name, title, text):
    """`name.md` in this folder."""
    (HERE / f"{name}.md").write_text(f"# {title}\n\n<!-- written by {name}.py -->\n\n{text}")


def picture(name, draw, size=(8, 5)):
    """`name.svg` in this folder: `draw` gets a matplotlib figure."""
    import matplotlib

    matplotlib.use("svg")
    # The same data gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "pare"
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=size, layout="constrained")
    draw(figure)
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
