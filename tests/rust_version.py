"""Compares `rust-version` of the workspace with the newest one among all packages.

    cargo metadata --format-version 1 | python3 tests/rust_version.py
"""

import json
import sys


def version(package: dict) -> tuple[int, ...]:
    """The declared Rust version; (0,) if there is none."""
    return tuple(int(part) for part in (package["rust_version"] or "0").split(".")[:2])


metadata = json.load(sys.stdin)
members = [p for p in metadata["packages"] if p["id"] in metadata["workspace_members"]]
needed = max((p for p in metadata["packages"] if p not in members), key=version)
for member in members:
    if version(member) != version(needed):
        sys.exit(f"{member['name']} declares Rust {member['rust_version']}, but {needed['name']} needs {needed['rust_version']}")
