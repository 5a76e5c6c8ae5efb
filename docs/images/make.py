"""Photograph the top of a bundle's report for the README: `python docs/images/make.py BUNDLE` (needs Chromium).

Quote the same bundle's numbers in README.md when you replace the picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parent / "report.png"
WIDTH, HEIGHT = 1280, 940
COLOURS = 128
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


def main(bundle: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        page = (bundle / "report.html").resolve().as_uri()
        command = ["chromium", *FLAGS, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={raw}", page]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with Image.open(raw) as image:
            image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
