"""Photograph the page of a running server for the guide: `python docs/images/make_page.py http://127.0.0.1:8000 KEY` (needs Chromium).

Serve from a registry, with a rollout under way and requests coming in, as examples/lifecycle does.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve()
OUT = HERE.parent / "page.png"
WIDTH, HEIGHT = 1280, 1240
COLOURS = 256


def main(url: str, key: str) -> None:
    sys.path.insert(0, str(HERE.parents[2] / "tests" / "bundle"))
    from headless_chromium import Chromium

    with tempfile.TemporaryDirectory() as folder, Chromium(Path(folder)) as browser:
        browser.open(f"{url}/ui/", WIDTH, HEIGHT)
        browser.until("document.querySelector('dialog[open] input') !== null")
        browser.type(key)
        browser.press("Enter")
        browser.until("document.querySelector('main .guardrails') !== null")
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        time.sleep(2)
        raw = Path(folder) / "raw.png"
        browser.photograph(raw, whole=False)
        with Image.open(io.BytesIO(raw.read_bytes())) as image:
            image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:3])
