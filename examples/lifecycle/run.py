"""A model's life in production, in three minutes, on loopback: versions, canaries, what is caught, what is let in, and the log of it all.

    python examples/lifecycle/run.py

Needs lowbit with `[all]`, and takes `build/demo` (`lowbit demo`) if it is there; else it makes a smaller bundle of the same model first.
Every step is the command or the page that one would use: a server, users that send real images and compare every answer with what
its version would say, bad versions that were pushed past the gate, and a good one. Exits with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bad_bundles import KINDS, make_bad
from crowd import Crowd
from numpy.typing import NDArray

from lowbit import Bundle
from lowbit.data.open import open_data

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "src" / "lowbit" / "demo"
MODEL = "fashion"
PLAN = """
steps: [20%, 50%, 100%]  # a distribution of confidences needs its 2,000 answers: at 1 % that would take a day of this traffic
step_s: 2
min_requests: 500  # of four images each
deadline_s: 300  # 2,000 answers take some seconds, or minutes on a machine that has much else to do
look_s: 1
shadow: 30%
"""
BAD = ("wrong", "shifted", "slow", "crashing")
WAIT_S = 960.0
"""For a rollout, all its deadlines and a little; a quiet machine needs a few seconds of it."""


@dataclass
class Story:
    """What happened, and whether it should have.

    Attributes:
        wrong: What should not have.
        facts: Numbers of the summary.
    """

    began: float = field(default_factory=time.monotonic)
    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.wrong.append(text)
            self.tell(f"NOT SO: {text}")


def lowbit(*args: str | Path) -> Any:
    """One command; its JSON."""
    ended = subprocess.run(["lowbit", *map(str, args), "--output", "json"], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"lowbit {' '.join(map(str, args))}\n{ended.stderr}")
    return json.loads(ended.stdout)


@contextlib.contextmanager
def server(registry: Path, keys: Path, log: Path) -> Iterator[str]:
    """`lowbit serve fashion@champion`, on a free port; its address."""
    command = ["lowbit", "serve", f"{MODEL}@champion", "--registry", str(registry), "--api-key-file", str(keys), "--port", "0"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--no-grpc", "--feedback", "--output", "json"], stdout=subprocess.PIPE, stderr=stream, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"The server did not start:\n{log.read_text()}")
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(40)


def until(holds: Callable[[], Any], wait_s: float = WAIT_S, every_s: float = 0.1) -> Any:
    """What `holds` gives once it gives something; None if it never does."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(every_s)
    return None


def bundle_of(work: Path, story: Story) -> Path:
    """The demo's bundle; a smaller search where `lowbit demo` has not run."""
    if (ROOT / "build/demo/bundle.json").exists():
        return ROOT / "build/demo"
    story.tell("lowbit optimize: there is no build/demo yet")
    out = work / "bundle"
    narrow = ("--recipe", "int8-static-mse", "--runtime", "onnxruntime", "--preprocess", "fashion-mnist")
    lowbit("optimize", DEMO / "resnet_fashion.onnx", "--data", DEMO / "fashion_mnist.npz", "--max-drop", "1%", "--out", out, *narrow)
    return out


def images_of(bundle: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Real images as the model takes them, and their classes."""
    loaded = Bundle.load(bundle)
    with loaded.session() as session:
        data = open_data(DEMO / "fashion_mnist.npz", session.inputs, loaded.preprocess, limit=1000)
    assert data.labels is not None
    return np.concatenate([batch.feeds["image"] for batch in data.batches(100)]), np.asarray(data.labels)


def says(bundle: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a bundle answers, without a server."""
    with Bundle.load(bundle).session() as session:
        return np.concatenate([session.run(images[start : start + 50])["logits"] for start in range(0, len(images), 50)])


def version(registry: Path, ref: str, crowd: Crowd, images: NDArray[np.float32]) -> None:
    """Tells the crowd what a version would say."""
    folder = Path(lowbit("registry", "checkout", ref, "--registry", registry)["folder"])
    crowd.answers[ref.split("@")[1]] = says(folder, images)


def roll_out(registry: Path, plan: Path, ref: str, story: Story) -> dict[str, Any]:
    """Starts a rollout and waits for its end."""
    began = time.monotonic()
    started = lowbit("rollout", "start", ref, "--plan", plan, "--registry", registry, "--by", "example")

    def ended() -> Any:
        found = lowbit("rollout", "status", started["id"], "--registry", registry)
        return found if found["state"] not in ("running", "paused") else None

    found = until(ended, every_s=0.3) or {"state": "running", "why": f"not ended within {WAIT_S:g} s"}
    took = time.monotonic() - began
    story.tell(f"{ref}: {found['state'].replace('_', ' ')} after {took:.1f} s. {found['why']}")
    return {"state": found["state"], "seconds": round(took, 1), "why": found["why"]}


def live(work: Path, story: Story) -> None:
    bundle = bundle_of(work, story)
    registry, plan, keys = work / "registry", work / "plan.yaml", work / "keys.txt"
    plan.write_text(PLAN)
    keys.write_text(secrets.token_urlsafe(24) + "\n")
    keys.chmod(0o600)
    images, labels = images_of(bundle)

    pushed = lowbit("registry", "push", bundle, "--model", MODEL, "--registry", registry, "--by", "example")
    full, small = f"{MODEL}@{pushed['source']['number']}", f"{MODEL}@{pushed['quantized']['number']}"
    story.tell(f"lowbit registry push: {full} in its own precision, {small} quantized from it")
    lowbit("registry", "promote", full, "--registry", registry, "--by", "example")
    with server(registry, keys, work / "server.log") as url:
        story.tell(f"lowbit serve {MODEL}@champion: {url}")
        crowd = Crowd(url, MODEL, keys.read_text().strip(), images, labels)
        for ref in (full, small):
            version(registry, ref, crowd, images)
        with crowd:
            for kind in BAD:
                ref = f"{MODEL}@{push_bad(kind, bundle, work / kind, registry)}"
                if kind != "crashing":  # that one gives no answers
                    version(registry, ref, crowd, images)
                story.tell(f"{ref} is pushed past the gate. {KINDS[kind].__doc__}")
                story.facts[kind] = found = roll_out(registry, plan, ref, story)
                story.expect(found["state"] == "rolled_back", f"{kind} is rolled back")
            story.facts["healthy"] = found = roll_out(registry, plan, small, story)
            story.expect(found["state"] == "promoted", "the healthy version is promoted")
            if found["state"] == "promoted":
                story.facts["rollback_s"] = back(registry, full, crowd, story)
        report(crowd, story)
    checked = lowbit("registry", "verify", "--registry", registry)
    story.expect(not checked["problems"], "the registry and its audit log verify")
    story.tell("lowbit registry verify: every file, version, alias and row of the log is as it was written")


def push_bad(kind: str, bundle: Path, out: Path, registry: Path) -> int:
    """A version that nobody would have let through; its number."""
    pushed = lowbit("registry", "push", make_bad(bundle, out, kind), "--model", MODEL, "--registry", registry, "--by", "example")
    return int(pushed["quantized"]["number"])


def back(registry: Path, full: str, crowd: Crowd, story: Story) -> float | None:
    """Rolls the champion back by hand; seconds from the command's commit until the version before answers."""
    event = lowbit("registry", "rollback", MODEL, "--registry", registry, "--by", "example")
    took: float | None = until(lambda: crowd.since(event["at"], full.split("@")[1]), 10, 0.02)
    story.expect(took is not None and took < 1, "a rollback takes effect within a second")
    story.tell(f"lowbit registry rollback: {full} answers again {'never' if took is None else f'{1000 * took:.0f} ms'} after the commit")
    return took


def report(crowd: Crowd, story: Story) -> None:
    seen = crowd.seen
    story.facts |= {"answered": dict(seen.answered), "lost": dict(seen.lost), "swapped": seen.swapped}
    shares = ", ".join(f"{count:,} by version {version}" for version, count in sorted(seen.answered.items()))
    lost, swapped = sum(seen.lost.values()), seen.swapped
    story.tell(f"{sum(seen.answered.values()):,} requests answered ({shares}); lost: {lost}; not their version's: {swapped}")
    story.expect(not seen.lost, f"no request is lost: {dict(seen.lost)}")
    story.expect(not seen.swapped, "every answer is its version's own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "lifecycle", help="folder that is made anew")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    story = Story()
    live(options.work, story)
    story.facts["seconds"] = round(time.monotonic() - story.began, 1)
    if options.out:
        options.out.write_text(json.dumps(story.facts, indent=1) + "\n")
    sys.exit(1 if story.wrong else 0)


if __name__ == "__main__":
    main()
