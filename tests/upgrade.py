"""Run `pare optimize --passes 'upgrade-opset{to=26}'` over every node test of ONNX and run the results.

    python tests/upgrade.py target/release/pare [--to 26] [--down 12] [--models FOLDER …]

Node tests of the operator sets from 7 to the one before `--to` are upgraded, or with `--down` those after it are
downgraded. Each is counted once:

    equal      the expected outputs, or those of the original in ONNX Runtime
    declined   a node has no equivalent; the reason is printed
    not run    ONNX Runtime runs neither the original nor the result, or the outputs are random
    no kernel  ONNX Runtime has no implementation of an operator in this operator set
    wrong      other outputs, another operator set, or another interface
    invalid    ONNX Runtime runs the original, but not the result
    crash      pare panics, is killed, takes longer than a minute, or fails without a reason

With `--models`, the models of these folders are upgraded too, and proven by pare itself. The exit code is 1 if
any is wrong, invalid, or a crash.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

from conformance import enter_environment, ports, same, session

BAD = ("wrong", "invalid", "crash")
RANDOM = ("Random", "Bernoulli", "Multinomial")


def opset(model):
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def results(path, inputs):
    """The ports and the outputs in ONNX Runtime; `None` and the error if it does not run the model."""
    try:
        model = session(path)
        feed = dict(zip((i.name for i in model.get_inputs()), inputs))
        return ports(model), model.run(None, feed)
    except Exception as error:
        return None, str(error)[:200]


def convert(pare, step, before, after, prove):
    command = [pare, "optimize", before, "-o", after, "--passes", step, "--json", "--no-time"]
    command += [] if prove else ["--no-prove"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 if not prove else 600)
    except subprocess.TimeoutExpired:
        return "crash", "it takes too long"
    if done.returncode not in (0, 3) or "panicked" in done.stderr:
        return "crash", f"exit {done.returncode}: {done.stderr.strip()[-200:]}"
    reasons = [why for step in json.loads(done.stdout)["steps"] for why in step["declined"]]
    if reasons:
        return "declined", "; ".join(reasons)
    return (None, "") if after.exists() else ("crash", "no file and no reason")


def judge(case, pare, step, to, folder):
    """The count this test belongs to, and why."""
    import onnx

    before, after = folder / "before.onnx", folder / "after.onnx"
    after.unlink(missing_ok=True)
    onnx.save(case.model, before)
    inputs, expected = case.data_sets[0]
    interface, original = results(before, inputs)
    if any(node.op_type.startswith(RANDOM) for node in case.model.graph.node):
        return "not run", "its outputs are random"
    verdict, why = convert(pare, step, before, after, prove=False)
    if verdict:
        return verdict, why
    if opset(onnx.load(after, load_external_data=False)) != to:
        return "wrong", "it has another operator set"
    changed, outputs = results(after, inputs)
    if changed is None:
        if interface is None:
            return "not run", ""
        return ("no kernel" if "NOT_IMPLEMENTED" in outputs else "invalid"), outputs
    if interface is not None and changed != interface:
        return "wrong", f"{interface} became {changed}"
    # Expected outputs may be written with fewer digits, which the test states.
    if same(list(expected), outputs, case.rtol, max(case.atol, 1e-6)) or interface is not None and same(original, outputs):
        return "equal", ""
    return "wrong", "other outputs"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pare", help="the binary")
    parser.add_argument("--to", type=int, default=26, help="the operator set to upgrade to")
    parser.add_argument("--down", type=int, help="the operator set to downgrade to, instead")
    parser.add_argument("--models", nargs="*", default=[], help="folders of models")
    parser.add_argument("--only", default="", help="take only tests whose name contains this")
    given = parser.parse_args()
    enter_environment()

    import warnings

    warnings.simplefilter("ignore")
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    to = given.down or given.to
    step = f"downgrade-opset{{to={to}}}" if given.down else f"upgrade-opset{{to={to}}}"
    affected = range(to + 1, 100) if given.down else range(7, to)
    counts, listed = collections.Counter(), []

    def count(name, verdict, why):
        counts[verdict] += 1
        if verdict in (*BAD, "declined", "no kernel"):
            listed.append(f"{verdict:10} {name}: {why.strip()}")

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for case in collect_testcases(None):
            if opset(case.model) in affected and given.only in case.name:
                count(case.name, *judge(case, given.pare, step, to, folder))
        for path in sorted(p for root in given.models for p in pathlib.Path(root).rglob("*.onnx")):
            if opset(onnx.load(path, load_external_data=False)) in affected:
                after = folder / "model.onnx"
                after.unlink(missing_ok=True)
                verdict, why = convert(given.pare, step, path, after, prove=True)
                count(path.name, verdict or "equal", why)
    print("\n".join(listed))
    print(", ".join(f"{counts[v]} {v}" for v in ("equal", "declined", "not run", "no kernel", *BAD)))
    sys.exit(any(counts[v] for v in BAD))


if __name__ == "__main__":
    main()
