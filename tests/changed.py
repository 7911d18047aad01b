"""Optimizes every model in a folder, and counts the outcomes.

    PARE_FUZZ_KEEP=FOLDER PARE_FUZZ=graph PARE_FUZZ_SECONDS=10 cargo test --workspace --test main fuzz
    python3 tests/changed.py target/release/pare FOLDER

The fuzzer keeps mutated models that passes changed. Those that ONNX Runtime still runs must be proven equal. The others
are listed for inspection: some declare their outputs wrongly. Crashes and hangs of ONNX Runtime are counted separately
from those of pare, which exits with 0, 1 or 2.
"""

import collections
import pathlib
import subprocess
import sys
import tempfile


def outcome(pare: str, model: pathlib.Path, folder: str) -> tuple[str, str]:
    """One word for what happened, and the sentence about it."""
    command = [pare, "optimize", str(model), "-o", f"{folder}/out.onnx", "--offline", "--no-time"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "runs long", "ONNX Runtime is still running it after a minute"
    said = done.stdout + done.stderr
    why = next((line for line in said.splitlines() if line.startswith(("failed", "error"))), "")
    if "native code crashed" in said:
        return "crashes the engine", why
    if "panicked" in said or "left an invalid model" in said and "invalid before" not in said:
        return "a defect of a pass", why
    match done.returncode:
        case 0:
            return ("proven" if "proven equal" in said else "cannot be run"), ""
        case 1:
            return "differs", why
        case 2:
            return "refused", ""
        case code:
            return f"ended by signal {-code}", why


def main() -> int:
    pare, folder = sys.argv[1:]
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as out:
        for model in sorted(pathlib.Path(folder).glob("*.onnx")):
            what, why = outcome(pare, model, out)
            counts[what] += 1
            if why:
                print(f"{model.name}: {what}: {why[:200]}", flush=True)
    for what, count in counts.most_common():
        print(f"{count:6} {what}")
    return counts["a defect of a pass"] > 0


if __name__ == "__main__":
    sys.exit(main())
