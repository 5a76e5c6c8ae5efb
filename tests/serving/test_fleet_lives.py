"""Real servers on a registry: killed, several of them, and steered over HTTP."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from fleet_case import BY, GUARDED, Asking, Case, a_case, a_server, another, the_champion, versions  # noqa: F401 - fixtures, by their names
from serving_case import Running, running, until
from test_life import call

from lowbit.registry.records import ModelVersion

KEY = "a key of this test"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_killed_in_the_middle_of_a_rollout_it_goes_on_where_it_was(case: Case, champion: ModelVersion, other: ModelVersion) -> None:
    rollout = case.start(other, step_s=1.5, **GUARDED)
    options = ("--registry", case.folder, "--no-grpc")
    with running("tiny", options=options) as first, Asking((first.port,)):
        until(lambda: case.rollouts.evidence(rollout.id, 0).canary.requests > 10 or case.rollouts.get(rollout.id).step)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert case.rollouts.get(rollout.id).open
    assert list((case.folder / "state" / "rollouts" / rollout.id).iterdir())  # what it left behind
    with running("tiny", options=options) as second, Asking((second.port,)) as clients:
        assert case.ended(rollout).state == "promoted"
    assert set(clients.seen) <= {str(champion.number), str(other.number)}
    case.registry.rollback("tiny", by=BY, why="for the next test")


def test_two_servers_follow_and_their_evidence_adds_up(case: Case, server: Running, champion: ModelVersion, other: ModelVersion) -> None:
    with running("tiny", options=("--registry", case.folder, "--no-grpc")) as second, Asking((server.port, second.port)) as clients:
        rollout = case.start(other, **GUARDED, step_s=2, min_requests=100)
        ended = case.ended(rollout)
        servers = case.registry.rows("SELECT DISTINCT server FROM rollout_evidence WHERE rollout = ? AND step = 0 AND n > 0", (rollout.id,))
        assert (ended.state, len(servers)) == ("promoted", 2)
        for each in (server, second):
            until(lambda each=each: versions(each)[0] == str(other.number))
        case.registry.rollback("tiny", by=BY, why="both")
        for each in (server, second):
            until(lambda each=each: versions(each)[0] == str(champion.number))
    assert set(clients.seen) <= {str(champion.number), str(other.number)}


def test_with_keys_the_registry_can_be_steered_over_http(case: Case, champion: ModelVersion, other: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    options = ("--registry", case.folder, "--no-grpc", "--api-key-file", tmp_path / "keys")
    with running("web=tiny@champion", options=options) as server:
        assert call(f"{server.url}/v1/registry")[0] == 401

        def post(path: str, **document: object) -> tuple[int, dict[str, object]]:
            status, answer, _ = call(f"{server.url}{path}", json.dumps(document).encode(), **HEADERS)
            return status, answer

        who = {"by": "ada", "why": "a test"}
        assert post("/v1/registry/tiny", action="promote", ref=other.number, expect=other.number, **who)[0] == 409
        assert post("/v1/registry/tiny", action="promote", ref="99", **who)[0] == 400
        assert post("/v1/registry/tiny", action="promote", ref=str(other.number))[0] == 400  # nobody said who
        status, answer = post("/v1/registry/tiny", action="promote", ref=other.number, expect=champion.number, **who)
        assert (status, answer["model"]["aliases"]["champion"]) == (200, other.number)  # type: ignore[index]
        until(lambda: call(f"{server.url}/v2/models/web", **HEADERS)[1]["versions"][0] == str(other.number))
        assert post("/v1/registry/tiny", action="rollback", **who)[0] == 200
        until(lambda: call(f"{server.url}/v2/models/web", **HEADERS)[1]["versions"][0] == str(champion.number))
        status, rollout = post("/v1/rollouts", model="tiny", candidate=other.number, by="ada", plan={"steps": ["10%", "100%"]})
        assert (status, rollout["state"], rollout["share"], rollout["candidate"]) == (200, "running", 0.1, other.number)
        assert post("/v1/rollouts", model="tiny", candidate=other.number, by="ada")[0] == 400  # one is under way
        address = f"/v1/rollouts/{rollout['id']}"
        until(lambda: call(f"{server.url}/v1/registry", **HEADERS)[1]["models"][0]["versions"][other.number - 1]["share"] == 0.1)
        for action, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted"), ("abort", "aborted")):
            status, answer = post(address, action=action, **who)
            assert (status, answer["state"], answer["by"]) == (200, state, "ada")
        assert post(address, action="explode", **who)[0] == 400
        assert post("/v1/rollouts/none-7", action="abort", **who)[0] == 404
        assert call(f"{server.url}/v1/rollouts", **HEADERS)[1]["rollouts"][0]["state"] == "aborted"
        audit = call(f"{server.url}/v1/registry/audit?limit=3", **HEADERS)[1]
        assert "rollout abort" in [row["action"] for row in audit["rows"]]
        assert all(row["by"] == "ada" for row in audit["rows"])
