"""Real servers on a registry: they follow it, whoever changes it and whatever dies."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from bad_bundles import make_bad
from fleet_case import BY, GUARDED, Asking, Case, a_case, a_server, another, body, the_champion, versions  # noqa: F401 - fixtures, by their names
from serving_case import Running, running, tiny_bundle, until
from test_life import call

from lowbit.registry.records import ModelVersion


def test_it_serves_the_champion_by_its_number(server: Running, champion: ModelVersion, case: Case) -> None:
    (model,) = server.ready["models"]
    assert (model["name"], model["version"]) == ("tiny", str(champion.number))
    _, document, _ = call(f"{server.url}/v2/models/tiny/infer", body())
    assert document["model_version"] == str(champion.number)
    assert (case.folder / "state").is_dir()
    (shown,) = call(f"{server.url}/v1/registry")[1]["models"]
    assert shown["aliases"] == {"champion": champion.number}
    facts = {each["number"]: (each["kind"], each["loaded"], each["share"], each["parents"]) for each in shown["versions"]}
    assert facts[champion.number] == ("quantized", True, 1.0, [1])
    assert facts[1] == ("source", False, 0.0, [])
    assert call(f"{server.url}/v1/registry/audit?limit=1")[1]["verified"] is True
    assert call(f"{server.url}/v1/registry/tiny", b'{"action": "rollback"}')[0] == 404  # without keys nobody changes anything


def test_a_promotion_and_a_rollback_take_effect_within_a_second_and_cost_no_answer(
    server: Running, case: Case, champion: ModelVersion, other: ModelVersion
) -> None:
    with Asking((server.port,)) as clients:
        until(lambda: clients.seen[str(champion.number)] > 20)
        case.registry.promote(other, by=BY, why="a test")
        clients.first(str(other.number), time.time())
        assert versions(server) == [str(other.number), str(champion.number)]  # the one before stays warm
        named = call(f"{server.url}/v2/models/tiny/versions/{champion.number}/infer", body())
        assert (named[0], named[1]["model_version"]) == (200, str(champion.number))
        took, went = [], []
        for _ in range(3):
            case.registry.rollback("tiny", by=BY, why="a test")
            committed = time.time()
            took.append(clients.first(str(champion.number), committed) - committed)
            time.sleep(1)
            went.append(clients.last(str(other.number)) - committed)
            case.registry.promote(other, by=BY, why="again")
            clients.first(str(other.number), time.time())
        case.registry.rollback("tiny", by=BY, why="a test")
        clients.first(str(champion.number), time.time())
    print("from the commit to the first answer:", took)
    assert sorted(took)[1] < 1  # once the machine may have been busy elsewhere
    assert sorted(went)[1] < 1
    assert set(clients.seen) == {str(champion.number), str(other.number)}


def test_a_healthy_candidate_is_promoted_and_sessions_stay(
    server: Running, case: Case, champion: ModelVersion, other: ModelVersion
) -> None:
    rollout = case.start(other, **GUARDED, step_s=1.5)

    def asked(session: str) -> str:
        return str(call(f"{server.url}/v2/models/tiny/infer", body(), X_Lowbit_Session=session)[1]["model_version"])

    with Asking((server.port,)) as clients:
        until(lambda: clients.seen[str(other.number)] > 3)
        sides = {session: {asked(session) for _ in range(4)} for session in "abcdefgh"}
        if case.rollouts.get(rollout.id).step == 0:  # the step may be over on a slow machine
            assert all(len(side) == 1 for side in sides.values())
            assert set.union(*sides.values()) == {str(champion.number), str(other.number)}
        ended = case.ended(rollout)
        clients.first(str(other.number), time.time())
    assert ended.state == "promoted", ended.why
    assert case.registry.resolve("tiny@champion") == other
    assert set(clients.seen) == {str(champion.number), str(other.number)}
    assert case.rollouts.replay(rollout.id) == []
    first = case.rollouts.evidence(rollout.id, 0)
    assert min(first.canary.requests, first.baseline.requests) > 20
    assert (first.canary.disagreed, first.canary.errors, first.hard) == (0, 0, ())
    shown = call(f"{server.url}/v1/rollouts/{rollout.id}")[1]
    assert (shown["state"], shown["decisions"][-1]["action"]) == ("promoted", "promote")
    case.registry.rollback("tiny", by=BY, why="for the next test")
    until(lambda: versions(server)[0] == str(champion.number))


def test_a_tampered_version_is_refused_and_the_old_one_stays(server: Running, case: Case, champion: ModelVersion, tmp_path: Path) -> None:
    bad = case.push(tiny_bundle(tmp_path / "tiny", note="tampered with"))
    (model,) = [file for file in case.registry.files(bad) if file.path == "bundle.json"]
    blob = case.folder / "blobs" / model.sha256[:2] / model.sha256
    assert blob.is_file()
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"tampered with", b"Tampered with"))
    case.registry.promote(bad, by=BY, why="nobody looked")
    until(lambda: '"a version cannot be loaded"' in server.logged())
    assert call(f"{server.url}/v2/models/tiny/infer", body())[1]["model_version"] == str(champion.number)
    assert str(case.folder) not in server.logged()
    assert 'lowbit_reloads_total{model="tiny",result="failed"} 1.0' in call(f"{server.url}/metrics")[1]
    case.registry.rollback("tiny", by=BY, why="it was noticed")
    until(lambda: str(bad.number) not in versions(server) and versions(server)[0] == str(champion.number))


@pytest.mark.usefixtures("server")
def test_a_candidate_that_cannot_be_loaded_is_rolled_back(case: Case, champion: ModelVersion, tmp_path: Path) -> None:
    def cut(model: object) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"  # type: ignore[attr-defined]

    broken = case.push(make_bad(tiny_bundle(tmp_path / "good" / "tiny"), tmp_path / "bad" / "tiny", cut))
    ended = case.ended(case.start(broken))
    assert ended.state == "rolled_back"
    assert "cannot be loaded" in ended.why
    assert case.registry.resolve("tiny@champion") == champion


def test_a_server_that_reads_a_damaged_registry_goes_on(server: Running, case: Case, champion: ModelVersion) -> None:
    with sqlite3.connect(case.folder / "registry.sqlite", isolation_level=None) as db:
        db.execute("BEGIN EXCLUSIVE")  # nobody else can write meanwhile
        for _ in range(5):
            assert call(f"{server.url}/v2/models/tiny/infer", body())[1]["model_version"] == str(champion.number)
            time.sleep(0.1)
        db.execute("ROLLBACK")
    db.close()


def test_without_a_registry_the_pages_say_so(tmp_path: Path) -> None:
    with running(tiny_bundle(tmp_path / "tiny"), options=("--no-grpc",)) as server:
        for path in ("registry", "registry/audit", "rollouts"):
            status, document, _ = call(f"{server.url}/v1/{path}")
            assert (status, "has no registry" in document["error"]) == (404, True)
