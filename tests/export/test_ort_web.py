"""The page and its model: in Node, in headless Chromium, and as a visitor uses it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from by_hand import STEPS, Case, case, run, with_batch
from PIL import Image
from target_case import INPUT, OUTPUT

from conftest import missing
from lowbit.data.geometry import Letterbox
from lowbit.data.preprocess import Preprocess
from lowbit.errors import RunError, UsageError
from lowbit.export.base import Artifact
from lowbit.export.ortweb.target import CHROMIUM, NODE, PAGE, RUNTIME_FILES, OrtWeb, page_facts, runtime_folder
from lowbit.export.settings import settings_of

if TYPE_CHECKING:
    from headless_chromium import Chromium

LABELS = tuple(f"thing {index}" for index in range(10))
PAGE_FOLDER = Path(__file__).resolve().parents[2] / "src" / "lowbit" / "export" / "ortweb" / "page"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("web"), labels=LABELS)


@pytest.fixture(scope="module")
def artifact(made: Case, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(made, tmp_path_factory.mktemp("page") / "out", "title=Things")


def write(made: Case, folder: Path, *settings: str) -> Artifact:
    folder.mkdir()
    target = OrtWeb()
    return target.write(made.source, folder, settings_of(target, settings))


def need(artifact: Artifact, kernels: str) -> None:
    if kernels not in OrtWeb().kernel_sets(artifact):
        missing(f"what runs {kernels}: onnxruntime-web (LOWBIT_ORT_WEB or .node/node_modules) and its program")


@pytest.fixture
def address(artifact: Artifact) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(artifact.main.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_any_number_of_samples_is_answered_whatever_the_model_takes(made: Case, tmp_path: Path) -> None:
    of_eight = write(replace(made, source=with_batch(made.source, 8)), tmp_path / "out")
    need(of_eight, NODE)
    session = OrtWeb().open(of_eight, NODE)
    assert np.array_equal(session.run({INPUT: made.asked[:21]})[OUTPUT], made.answers()[:21])
    session.close()


def test_a_page_shows_one_image_so_that_a_model_of_several_has_none(made: Case) -> None:
    assert "several images a call" in page_facts(with_batch(made.source, 8), "")["lacking"]
    assert page_facts(with_batch(made.source, 1), "")["lacking"] == ""


@pytest.mark.parametrize("kernels", [NODE, CHROMIUM])
def test_web_assembly_answers_as_the_artifact(made: Case, artifact: Artifact, kernels: str) -> None:
    need(artifact, kernels)
    session = OrtWeb().open(artifact, kernels)
    found, ours = session.run({INPUT: made.asked})[OUTPUT], made.answers()
    again = session.run({INPUT: made.asked[:1]})[OUTPUT]
    with pytest.raises(RunError, match="failed"):
        session.run({"picture": made.asked[:1]})
    session.close()
    assert found.shape == ours.shape
    assert found.dtype == np.float32
    assert (found.argmax(1) == ours.argmax(1)).all()
    assert np.abs(found - ours).max() < 0.02 * np.ptp(ours)
    assert np.allclose(again, found[:1], atol=1e-5)


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def test_the_page_classifies_an_image(made: Case, artifact: Artifact, browser: Chromium, address: str) -> None:
    need(artifact, CHROMIUM)
    shown, buffer = picture(), io.BytesIO()
    shown.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    page = browser.open(address, 390)
    browser.until("document.documentElement.dataset.ready === 'yes'")
    browser.evaluate(
        f"""(() => {{
          const file = new File([Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0))], 'photo.png', {{ type: 'image/png' }});
          const held = new DataTransfer();
          held.items.add(file);
          const input = document.getElementById('file');
          input.files = held.files;
          input.dispatchEvent(new Event('change'));
        }})()"""
    )
    browser.until("document.documentElement.dataset.answered === 'yes'")
    scores = run(made.artifact, STEPS.batch([shown]))[0].astype(np.float64)
    powers = np.exp(scores - scores.max())
    order = np.argsort(-powers, kind="stable")[:5]
    found = browser.evaluate("[...document.querySelectorAll('#answers li')].map((li) => [+li.dataset.index, li.innerText])")
    assert [index for index, _ in found] == order.tolist()
    best = order[0]
    assert found[0][1].split("\n") == [f"thing {best}", f"{100 * powers[best] / powers.sum():.1f} %"]
    assert browser.evaluate("document.getElementById('title').textContent") == "Things"
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert page.messages == []
    assert {url.split("/")[2] for url in page.urls if url.startswith("http")} == {address.split("/")[2]}


def test_a_file_that_is_no_image_is_said_so(artifact: Artifact, browser: Chromium, address: str) -> None:
    need(artifact, CHROMIUM)
    browser.open(address, 1280)
    browser.until("document.documentElement.dataset.ready === 'yes'")
    browser.evaluate(
        """(() => {
          const held = new DataTransfer();
          held.items.add(new File(['no picture'], 'words.txt', { type: 'text/plain' }));
          const input = document.getElementById('file');
          input.files = held.files;
          input.dispatchEvent(new Event('change'));
        })()"""
    )
    browser.until("document.getElementById('state').className === 'bad'")
    assert browser.evaluate("document.getElementById('state').textContent") == "words.txt is no image that this browser reads."


STEP_CASES = {
    "short side and crop": (STEPS, (40, 30)),
    "tall": (STEPS, (21, 77)),
    "already right": (STEPS, (12, 12)),
    "larger": (replace(STEPS, resize=(23, 31), crop=None), (17, 19)),
    "bicubic": (replace(STEPS, interpolation="bicubic", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), (50, 35)),
    "bgr, unscaled": (replace(STEPS, channels="bgr", scale=1, mean=(104.0, 117.0, 123.0), std=()), (33, 47)),
    "grey": (replace(STEPS, channels="grey", layout="nhw", mean=(0.286,), std=(0.353,)), (29, 41)),
    "channels last": (replace(STEPS, layout="nhwc", scale=0.017), (64, 48)),
    "letterbox": (replace(STEPS, resize=None, crop=None, letterbox=Letterbox((20, 24), 114, "centre")), (50, 30)),
    "letterbox in the corner": (replace(STEPS, resize=None, crop=None, letterbox=Letterbox((20, 24), 7, "corner")), (11, 13)),
}


@pytest.mark.parametrize("name", STEP_CASES)
def test_the_page_prepares_images_as_lowbit_does(made: Case, tmp_path: Path, name: str) -> None:
    """The same pixels through both: JavaScript in Node, and lowbit's own steps. Which axis Pillow resizes first is its own affair."""
    node = shutil.which("node")
    if node is None:
        missing("node")
    steps, (width, height) = STEP_CASES[name]
    shown = picture(width, height)
    facts = page_facts(replace(made.source, preprocess=steps), "")
    (tmp_path / "pixels").write_bytes(shown.convert("RGBA").tobytes())
    script = f"""
      import {{ readFileSync, writeFileSync }} from 'node:fs';
      const {{ prepared }} = await import({json.dumps((PAGE_FOLDER / "steps.mjs").as_uri())});
      const data = new Uint8ClampedArray(readFileSync({json.dumps(str(tmp_path / "pixels"))}));
      const {{ values, shape }} = prepared({{ width: {width}, height: {height}, data }}, {json.dumps(facts["steps"])});
      writeFileSync({json.dumps(str(tmp_path / "out"))}, new Uint8Array(values.buffer));
      console.log(JSON.stringify(shape));
    """
    done = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    ours = steps.batch([shown])
    assert json.loads(done.stdout) == list(ours.shape)
    found = np.fromfile(tmp_path / "out", np.float32).reshape(ours.shape)
    level = steps.scale / min(steps.std or (1.0,))
    assert np.abs(found - ours).max() <= (1.001 * level if name in ("tall", "larger") else 0)
    assert (found == ours).mean() > 0.4


def test_the_folder_is_a_page_that_npm_completes(artifact: Artifact) -> None:
    folder = artifact.main.parent
    assert {*PAGE, "model.onnx", "model.json", "package.json", "labels.txt", "preprocess.yaml"} <= {file.name for file in artifact.files}
    package = json.loads((folder / "package.json").read_text())
    assert list(package["dependencies"]) == ["onnxruntime-web"]
    assert package["scripts"]["postinstall"] == "node install.mjs"
    assert all(name in (folder / "install.mjs").read_text() for name in RUNTIME_FILES)
    assert "default-src 'none'" in (folder / "index.html").read_text()


def test_without_the_runtime_the_page_is_written_and_says_what_is_missing(
    made: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOWBIT_ORT_WEB", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runtime_folder() is None
    assert OrtWeb().abilities().level == "checked"
    artifact = write(made, tmp_path / "out")
    assert OrtWeb().kernel_sets(artifact) == ()
    assert any("npm install" in note for note in artifact.notes)
    assert [finding.severity for finding in OrtWeb().check(artifact)] == ["warning"]
    monkeypatch.setenv("LOWBIT_ORT_WEB", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="is no folder"):
        runtime_folder()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (None, "has no preprocessing"),
        (replace(STEPS, kind="array"), "does not take one image"),
        (replace(STEPS, dtype="int8"), "not int8"),
    ],
)
def test_a_page_that_cannot_prepare_an_image_says_so(made: Case, steps: Preprocess | None, words: str) -> None:
    facts = page_facts(replace(made.source, preprocess=steps), "")
    assert words in facts["lacking"]
    assert facts["steps"] is None
