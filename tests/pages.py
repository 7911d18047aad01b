#!/usr/bin/env python3
"""Opens HTML reports in headless Chromium: they load without errors, every picture has its marks, and a screenshot
of each is written beside it.

    tests/pages.py report.html [...] [--to FOLDER] [--chromium PROGRAM]

Needs Chromium (Debian: `apt install chromium`).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path


class Pictures(HTMLParser):
    """Counts the marks of each picture, and the marks without a title."""

    def __init__(self):
        super().__init__()
        self.pictures = []
        self.open_mark = None

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "svg":
            self.pictures.append({"name": attributes["aria-label"], "said": int(attributes["data-marks"]), "marks": 0, "titles": 0})
        elif tag in ("circle", "rect") and self.pictures:
            self.pictures[-1]["marks"] += 1
        elif tag == "title" and self.pictures:
            self.pictures[-1]["titles"] += 1


def chromium(program, *arguments):
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def check(program, page, to):
    """The faults of a page, one sentence each."""
    url = page.resolve().as_uri()
    dumped = chromium(program, "--dump-dom", url)
    faults = [f"the console says {line}" for line in dumped.stderr.splitlines() if ":CONSOLE" in line]
    parser = Pictures()
    parser.feed(dumped.stdout)
    if not parser.pictures:
        faults.append("there is no picture")
    for picture in parser.pictures:
        if not picture["said"] == picture["marks"] == picture["titles"] or picture["marks"] == 0:
            faults.append(f"the picture {picture}")
    if re.search(r'(src|href)=', dumped.stdout):
        faults.append("it refers to another file")
    for name, flags in [("", []), ("-dark", ["--blink-settings=preferredColorScheme=0"])]:
        target = to / f"{page.stem}{name}.png"
        chromium(program, f"--screenshot={target}", "--window-size=1000,1400", *flags, url)
        if not target.exists() or target.stat().st_size < 10_000:
            faults.append(f"no screenshot {target}")
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "page.pdf"
        chromium(program, f"--print-to-pdf={printed}", url)
        if not printed.exists() or printed.read_bytes()[:4] != b"%PDF":
            faults.append("it cannot be printed")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, help="folder of the screenshots; that of each page if not given")
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    failed = False
    for page in options.pages:
        faults = check(options.chromium, page, options.to or page.parent)
        failed |= bool(faults)
        print(page, "; ".join(faults) or "ok")
    sys.exit(failed)


if __name__ == "__main__":
    main()
