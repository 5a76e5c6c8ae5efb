"""A candidate that is bad in one way or another comes to a live server, which takes it back by itself; nobody loses an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import bad_bundles
import numpy as np
import pytest
from bad_bundles import make_bad
from fleet_case import BY, Asking, Case, body, opened
from serving_case import INPUT, Running, running, tiny_bundle, until
from test_life import call

from lowbit.errors import ModelError
from lowbit.serving.fleet.deaths import DEATHS, EARLY_S, Deaths
from small_models import images

PLANS: dict[str, dict[str, Any]] = {
    "wrong": {"shadow": "100%", "guardrails": [{"kind": "disagreement"}]},
    "shifted": {"guardrails": [{"kind": "confidence"}]},
    "slow": {"guardrails": [{"kind": "p99"}], "alpha": 0.2},  # a p99 takes many answers; how many is not the matter here
    "crashing": {"guardrails": [{"kind": "errors"}]},
    "broken": {"guardrails": [{"kind": "errors"}]},
}
"""Of each, what has to find it; no step ends before."""
SAYS = {
    "wrong": "Disagreement with full precision",
    "shifted": "The shift of confidences",
    "slow": "P99 latency",
    "crashing": "crashed",
    "broken": "not a number",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("good") / "tiny")


@pytest.fixture(scope="module")
def case(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield from opened(tmp_path_factory.mktemp("bad") / "registry", bundle)


@pytest.fixture(scope="module")
def server(case: Case) -> Iterator[Running]:
    with running("tiny", options=("--registry", case.folder)) as made:
        yield made


@pytest.mark.parametrize("kind", PLANS)
def test_a_bad_candidate_is_taken_back_and_nobody_loses_an_answer(
    server: Running, case: Case, bundle: Path, tmp_path: Path, kind: str
) -> None:
    champion = case.registry.resolve("tiny@champion")
    edit = partial(bad_bundles.slow, rounds=24, size=256) if kind == "slow" else kind
    bad = case.push(make_bad(bundle, tmp_path / "tiny", edit))
    with Asking((server.port,)) as clients:
        until(lambda: clients.seen[str(champion.number)] > 10)
        start = time.time()
        rollout = case.ended(case.start(bad, **PLANS[kind], step_s=60), 150)
        took = time.time() - start
        until(lambda: clients.last(str(bad.number)) < time.time() - 0.5)
        since = time.time()
        clients.first(str(champion.number), since)
        assert clients.last(str(bad.number)) < since
    assert (rollout.state, SAYS[kind] in rollout.why) == ("rolled_back", True), rollout.why
    assert set(clients.seen) <= {str(champion.number), str(bad.number)}
    if kind in ("crashing", "broken"):
        assert set(clients.seen) == {str(champion.number)}
    assert case.registry.resolve("tiny@champion") == champion
    assert case.rollouts.replay(rollout.id) == []
    until(lambda: str(bad.number) not in call(f"{server.url}/v2/models/tiny")[1]["versions"])
    evidence = case.rollouts.evidence(rollout.id, 0)
    print(f"{kind}: {took:.1f} s, {evidence.canary.requests} of {evidence.baseline.requests}: {rollout.why}")


def test_every_way_in_is_split_alike(server: Running, case: Case, tmp_path: Path) -> None:
    champion = case.registry.resolve("tiny@champion")
    other = case.push(tiny_bundle(tmp_path / "tiny", note="another"))
    rollout = case.start(other, step_s=60)
    rest = f"{server.url}/v2/models/tiny/infer"

    def by_rest(session: str) -> str:
        return str(call(rest, body(), X_Lowbit_Session=session)[1]["model_version"])

    until(lambda: by_rest("a") == str(other.number) or by_rest("b") == str(other.number) or by_rest("c") == str(other.number))
    sessions = [f"session {number}" for number in range(12)]
    sides = {session: by_rest(session) for session in sessions}
    assert set(sides.values()) == {str(champion.number), str(other.number)}
    picture = _png()
    for session, side in sides.items():
        status, document, _ = call(f"{server.url}/v1/predict", picture, X_Lowbit_Session=session, Content_Type="image/png")
        assert (status, document["model_version"]) == (200, side)
        assert _by_grpc(server, session) == side
        tenant = call(rest, body(), X_Tenant=session)[1]["model_version"]  # where there is no session
        assert tenant == side
    case.rollouts.abort(rollout.id, by=BY, why="seen")
    until(lambda: str(other.number) not in call(f"{server.url}/v2/models/tiny")[1]["versions"])


def _png() -> bytes:
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _by_grpc(server: Running, session: str) -> str:
    import grpc

    from lowbit.serving.protocol.grpc_messages import SERVICE, messages

    known = messages()
    x = images(1)
    message = known["ModelInferRequest"](model_name="tiny")
    tensor = message.inputs.add(name=INPUT, datatype="FP32", shape=list(x.shape))
    tensor.contents.fp32_contents.extend(x.ravel().tolist())
    with grpc.insecure_channel(str(server.grpc)) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=known["ModelInferRequest"].SerializeToString,
            response_deserializer=known["ModelInferResponse"].FromString,
        )
        return str(ask(message, metadata=(("x-lowbit-session", session),), timeout=10).model_version)


def test_a_candidate_that_takes_servers_with_it_is_not_tried_for_ever(server: Running, case: Case, tmp_path: Path) -> None:
    bad = case.push(tiny_bundle(tmp_path / "tiny", note="kills"))
    folder = case.folder / "state" / "rollouts" / f"tiny-{len(case.rollouts.listed()) + 1}"
    folder.mkdir(parents=True)
    for number in range(DEATHS):
        (folder / f"a server that died {number}").write_bytes(b"..")  # nobody holds them
    rollout = case.start(bad, step_s=60)
    assert rollout.id == folder.name
    ended = case.ended(rollout)
    assert (ended.state, "crashed" in ended.why) == ("rolled_back", True)
    assert f"{DEATHS} servers died with it" in server.logged()


def test_only_early_deaths_count_and_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    held = Deaths(tmp_path, "me")
    (tmp_path / "r-1").mkdir()
    for number in range(DEATHS):
        (tmp_path / "r-1" / f"lived long {number}").write_bytes(b"." * int(EARLY_S))
    held.begin("r-1")
    held.begin("r-1")
    held.beat()
    assert (tmp_path / "r-1" / "me").read_bytes() == b"."
    other = Deaths(tmp_path, "other")
    for number in range(DEATHS - 1):
        (tmp_path / "r-1" / f"died {number}").write_bytes(b"")
    other.begin("r-1")  # the one that is alive is no death
    other.close()
    held.close()
    assert not (tmp_path / "r-1" / "me").exists()
    (tmp_path / "r-1" / "died again").write_bytes(b"")
    with pytest.raises(ModelError, match=f"{DEATHS} servers died with it within 10 minutes"):
        other.begin("r-1")
