"""Run `pare optimize` over every node test of ONNX and compare the outputs in ONNX Runtime.

    python tests/conformance.py target/release/pare [--every N] [--passes PIPELINE] [--rtol R] [--atol A] [--optimized]

Needs Python 3.10 or later. The packages it runs on (onnx, onnxruntime, numpy) go into an environment of their own,
`target/conformance`. Each test is counted once:

    ok         the same outputs as before
    not run    ONNX Runtime does not run the original
    refused    pare rejects the model with a reason
    wrong      other outputs; with `--passes ''`, another file
    interface  other inputs or outputs
    invalid    ONNX Runtime does not run the result
    crash      pare panics, is killed, or takes longer than a minute

The exit code is 1 if any is wrong, invalid, a crash, or has another interface.
"""

import argparse
import collections
import pathlib
import subprocess
import sys
import tempfile
import venv

BAD = ("wrong", "interface", "invalid", "crash")
HOME = pathlib.Path(__file__).resolve().parent.parent / "target" / "conformance"
PACKAGES = ["onnx==1.23.2", "onnxruntime==1.32.0", "numpy"]


def enter_environment():
    """Make the environment if it is not there, and run this script in it."""
    python = HOME / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if pathlib.Path(sys.prefix).resolve() == HOME.resolve():
        return
    try:
        import onnx, onnxruntime  # noqa: F401, E401

        return
    except ImportError:
        pass
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    sys.exit(subprocess.run([python, __file__, *sys.argv[1:]]).returncode)


def session(path, optimize=False):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ports(of):
    return [[(p.name, p.type, p.shape) for p in side] for side in (of.get_inputs(), of.get_outputs())]


def same(a, b, rtol=1e-4, atol=1e-6):
    """Equal, floats within rounding: by default of single precision, sums of a few hundred terms."""
    import numpy as np

    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(same(x, y, rtol, atol) for x, y in zip(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k], rtol, atol) for k in a)
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.dtype.kind in "fc":
        half = a.dtype.itemsize == 2
        rtol, atol = (max(rtol, 1e-2), max(atol, 1e-3)) if half else (rtol, atol)
        return np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    return bool((a == b).all())


def judge(case, pare, pipeline, folder, tolerance, optimized):
    """The count this test belongs to, and why."""
    import onnx

    before, after = folder / "before.onnx", folder / "after.onnx"
    after.unlink(missing_ok=True)
    onnx.save(case.model, before)
    original, wanted = None, None
    try:
        original = session(before)
        feed = dict(zip((i.name for i in original.get_inputs()), case.data_sets[0][0]))
        wanted = original.run(None, feed)
    except Exception:  # what the engine does not have is no fault of ours; pare still must not crash
        pass
    command = [pare, "optimize", before, "-o", after, "--passes", pipeline, "--no-prove"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "crash", "it takes longer than a minute"
    if done.returncode not in (0, 1, 2) or "panicked" in done.stderr:
        return "crash", done.stderr[-200:]
    if wanted is None:
        return "not run", ""
    if done.returncode != 0:
        return "refused", done.stderr[-200:]
    if not pipeline and after.read_bytes() != before.read_bytes():
        return "wrong", "it is another file after reading and writing"
    # Where nothing is to be gained, no file is written.
    try:
        result = session(after if after.exists() else before, optimized)
        if ports(result) != ports(original):
            return "interface", f"{ports(original)} became {ports(result)}"
        outputs = result.run(None, feed)
    except Exception as error:
        return "invalid", str(error)[:200]
    return ("ok", "") if same(wanted, outputs, *tolerance) else ("wrong", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pare", help="the binary")
    parser.add_argument("--every", type=int, default=1, help="take only each Nth test")
    parser.add_argument("--passes", default="safe", help="the pipeline")
    parser.add_argument("--rtol", type=float, default=1e-4, help="the relative tolerance of floats")
    parser.add_argument("--atol", type=float, default=1e-6, help="the absolute tolerance of floats")
    parser.add_argument("--optimized", action="store_true", help="run the results with ONNX Runtime's optimizations")
    given = parser.parse_args()
    enter_environment()

    import warnings

    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    counts, bad = collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for case in collect_testcases(None)[:: given.every]:
            verdict, why = judge(case, given.pare, given.passes, pathlib.Path(folder), (given.rtol, given.atol), given.optimized)
            counts[verdict] += 1
            if verdict in (*BAD, "refused"):
                bad.append(f"{verdict:10} {case.name}: {why.strip()}")
    print("\n".join(bad))
    print(", ".join(f"{counts[v]} {v}" for v in ("ok", "not run", "refused", *BAD)))
    sys.exit(any(counts[v] for v in BAD))


if __name__ == "__main__":
    main()
