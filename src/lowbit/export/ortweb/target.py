"""onnxruntime in browsers: a folder with a page that classifies an image on the visitor's device, by WebAssembly.

onnxruntime-web itself is not ours to ship: it comes from npm (`npm install` in the folder), or is copied from where npm has put it already.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.data.preprocess import Preprocess
from lowbit.errors import RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.named_session import NamedSession, fixed_size, float_words, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.ortweb.browser import Browser, chromium
from lowbit.export.qdq_again import Rounded, write_qdq
from lowbit.export.worker import Worker
from lowbit.plugins import named_version
from lowbit.runtimes.onnxruntime_cpu import DISTRIBUTIONS

NODE, CHROMIUM = "wasm (node)", "wasm (chromium)"
RUNTIME = "1.30.0"
"""Of onnxruntime-web, in package.json."""

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "app.mjs", "model.mjs", "steps.mjs", "style.css", "install.mjs")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Written:
    """What `open` needs beside the files: what was rounded, and how many samples a call the model takes where it leaves no choice."""

    rounded: Rounded
    size: int | None


class OrtWeb:
    """See `lowbit.export.base.Target`."""

    name = "ort-web"
    title = "ONNX Runtime web"
    wishes = (Wish("title", "", "heading of the page; the model's name where it is left out"),)
    extra: str | None = None

    def version(self) -> str | None:
        """Of onnxruntime: the folder is written without its sister for browsers."""
        return named_version("onnxruntime", *DISTRIBUTIONS)

    def abilities(self) -> Abilities:
        """It runs where npm has brought onnxruntime-web, in Node and in Chromium."""
        missing = []
        if runtime_folder() is None:
            missing.append(f"npm install --prefix .node onnxruntime-web@{RUNTIME}")
        if shutil.which("node") is None:
            missing.append("Node 18 or later")
        if chromium() is None:
            missing.append("Chromium")
        ways = [what for what, there in (("Node", shutil.which("node")), ("headless Chromium", chromium())) if there]
        if runtime_folder() is None or not ways:
            return Abilities(True, "checked", tuple(missing), "page and model written; not run")
        return Abilities(True, "run", tuple(missing), f"run by onnxruntime-web (WebAssembly, one thread) in {' and '.join(ways)}")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes the page, the model, and what the page must know of it."""
        main = folder / "model.onnx"
        rounded = write_qdq(source, main)
        facts = page_facts(source, str(settings["title"]))
        (folder / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "package.json").write_text(json.dumps(_package(source.name), indent=2) + "\n", encoding="utf-8")
        for name in PAGE:
            shutil.copyfile(_HERE / "page" / name, folder / name)
        files = [main, *(folder / name for name in ("model.json", "package.json", *PAGE)), *write_beside(source, folder)]
        notes = ["Browsers load the page over HTTP, not from a file: python -m http.server --directory DIR."]
        runtime = runtime_folder()
        if runtime is None:
            notes.append("onnxruntime-web is not in the folder yet: run npm install there.")
        else:
            (folder / "ort").mkdir()
            for name in RUNTIME_FILES:
                shutil.copyfile(runtime / name, folder / "ort" / name)
                files.append(folder / "ort" / name)
        if facts["lacking"]:
            notes.append(facts["lacking"])
        told: dict[str, Setting] = {"onnxruntime_web": _version_of(runtime) if runtime else RUNTIME, "page": not facts["lacking"]}
        return Artifact(main, tuple(files), told, (*notes, *float_words(rounded.floats)), Written(rounded, fixed_size(source.inputs)))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """What a browser is asked to download."""
        found = []
        folder = artifact.main.parent
        if not (folder / "ort").is_dir():
            found.append(Finding("runtime", "warning", "The page does not run before npm install has brought onnxruntime-web."))
        if artifact.size_bytes > 100_000_000:
            text = f"Visitors download {artifact.size_bytes / 1e6:.0f} MB before the first answer: a smaller model suits a page better."
            found.append(Finding("download", "warning", text))
        return found

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """Node first: it starts faster, and runs the same WebAssembly."""
        if not all((artifact.main.parent / "ort" / name).is_file() for name in RUNTIME_FILES):
            return ()
        return tuple(name for name, there in ((NODE, shutil.which("node")), (CHROMIUM, chromium())) if there)

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Loads the folder's model with the folder's runtime."""
        assert isinstance(artifact.state, Written), "the artifact is not of this target"
        grids, size, folder = artifact.state.rounded.outputs, artifact.state.size, artifact.main.parent
        if kernels == NODE:
            worker = Worker([shutil.which("node") or "node", _HERE / "answer.mjs", folder], "onnxruntime-web in Node")
            return NamedSession(worker.ask, worker.close, grids, size=size)
        if kernels == CHROMIUM:
            browser = Browser(folder)
            return NamedSession(browser.ask, browser.close, grids, size=size)
        raise RunError(f"ONNX Runtime web has no kernels '{kernels}' here; it has {', '.join(self.kernel_sets(artifact)) or 'none'}.")


def runtime_folder() -> Path | None:
    """Where npm has put what the page loads of onnxruntime-web; None where it has not.

    `LOWBIT_ORT_WEB` names the package's folder; else it is looked for in `.node/node_modules` and `node_modules` of the current folder.
    """
    given = os.environ.get("LOWBIT_ORT_WEB")
    if given and not Path(given).is_dir():
        raise UsageError(f"LOWBIT_ORT_WEB names '{given}', which is no folder.", "Name node_modules/onnxruntime-web.")
    places = [Path(given)] if given else [Path(root) / "node_modules" / "onnxruntime-web" for root in (".node", ".")]
    for place in places:
        if all((place / "dist" / name).is_file() for name in RUNTIME_FILES):
            return place / "dist"
    return None


def page_facts(source: Neutral, title: str) -> dict[str, Any]:
    """model.json: what the page must know, and in `lacking` why it cannot take an image, "" where it can."""
    first, answer = source.inputs[0], source.outputs[0]
    steps = source.preprocess
    lacking = _lacking(source)
    return {
        "file": "model.onnx",
        "title": title or source.name.replace("_", " "),
        "words": "INT8, in this browser by WebAssembly",
        "input": first.name,
        "shape": list(first.shape),
        "dtype": first.dtype,
        "output": answer.name,
        "labels": list(source.labels),
        "steps": None if lacking or steps is None else _steps(steps),
        "lacking": lacking,
    }


def _lacking(source: Neutral) -> str:
    """Why the page cannot prepare an image by itself; "" where it can."""
    steps, answer = source.preprocess, source.outputs[0]
    if steps is None:
        return "The bundle has no preprocessing: feed the model by `load` and `run` of model.mjs."
    if steps.kind != "image" or len(source.inputs) != 1:
        return "The model does not take one image: feed it by `load` and `run` of model.mjs."
    if (fixed_size(source.inputs) or 1) > 1:
        return "The model takes several images a call, the page has one: feed it by `load` and `run` of model.mjs."
    if steps.boxes is not None or len(answer.shape) != 2:
        return "The model's answer is no list of classes: draw it by `load` and `run` of model.mjs."
    if steps.dtype not in ("float32", "uint8") or isinstance(steps.scale, str):
        return f"The page prepares float32 and uint8 images, not {steps.dtype}: feed the model by `load` and `run` of model.mjs."
    return ""


def _steps(steps: Preprocess) -> dict[str, Any]:
    """The bundle's steps as page/steps.mjs takes them."""
    letterbox = steps.letterbox
    return {
        "resize": steps.resize,
        "crop": steps.crop,
        "letterbox": None if letterbox is None else {"size": letterbox.size, "value": letterbox.value, "align": letterbox.align},
        "keep_exact": steps.keep_exact,
        "interpolation": steps.interpolation,
        "channels": steps.channels,
        "scale": steps.scale,
        "mean": steps.mean,
        "std": steps.std,
        "layout": steps.layout,
        "dtype": steps.dtype,
    }


def _package(name: str) -> dict[str, Any]:
    return {
        "name": name.lower(),
        "private": True,
        "type": "module",
        "dependencies": {"onnxruntime-web": RUNTIME},
        "scripts": {"postinstall": "node install.mjs"},
    }


def _version_of(runtime: Path) -> str:
    return str(json.loads((runtime.parent / "package.json").read_text(encoding="utf-8"))["version"])
