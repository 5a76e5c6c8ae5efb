"""A policy's file and its flags change while a server runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from lowbit.errors import UsageError
from lowbit.serving.answer.live_policy import LivePolicy
from lowbit.serving.answer.routing import RoutingPolicy


def write(file: Path, text: str) -> None:
    """Like an editor: a new file in the place of the old one."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)  # noqa: PTH105


def test_a_changed_file_is_taken_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    write(file, "default: chosen")

    async def main() -> None:
        policy = LivePolicy(file=file)
        watching = asyncio.create_task(policy.watch(0.01))
        write(file, "default: full")
        await until(lambda: policy.now.default == "full")
        write(file, "default: [")
        await until(lambda: policy.failed == 1)
        assert policy.now.default == "full"
        file.unlink()
        await until(lambda: policy.failed == 2)
        write(file, "flags: {a: 2024-13-45}")
        await until(lambda: policy.failed == 3)
        write(file, "default: other")
        await until(lambda: policy.now.default == "other")
        watching.cancel()

    asyncio.run(main())


def test_whatever_a_check_does_the_file_is_still_watched(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    write(file, "default: chosen")

    def check(found: RoutingPolicy) -> None:
        if found.default == "odd":
            raise RuntimeError("a mistake of ours")

    async def main() -> None:
        policy = LivePolicy(file=file)
        policy.checks.append(check)
        watching = asyncio.create_task(policy.watch(0.01))
        write(file, "default: odd")
        await until(lambda: policy.failed == 1)
        assert policy.now.default == "chosen"
        write(file, "default: full")
        await until(lambda: policy.now.default == "full")
        watching.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text",
    [
        "flags: {a: 2024-13-45}",
        "[" * 5000,
        "? {a: 1}\n: 2",
        "rules: [{name: a, use: b, when: {budget_below_ms: 1" + "0" * 400 + "}}]",
        "\0",
    ],
)
def test_what_is_no_policy_is_a_kind_error(text: str) -> None:
    with pytest.raises(UsageError):
        RoutingPolicy.from_yaml(text)


async def until(holds: object) -> None:
    async with asyncio.timeout(5):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def test_a_policy_that_a_check_refuses_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    write(file, "default: chosen")
    policy = LivePolicy(file=file)

    def check(found: RoutingPolicy) -> None:
        if found.default == "nowhere":
            raise UsageError("It is not loaded.")

    policy.checks.append(check)
    write(file, "default: nowhere")
    assert not policy.reload()
    assert (policy.now.default, policy.failed) == ("chosen", 1)


def test_turned_flags_win_over_the_file_and_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    write(file, "flags: {a: 10%, b: false}")
    policy = LivePolicy(file=file, state=tmp_path)
    assert policy.turn({"a": True}) == {"a": 1.0, "b": 0.0}
    write(file, "flags: {a: 20%, b: true}")
    assert policy.reload()
    assert policy.now.flags == {"a": 1.0, "b": 1.0}
    assert LivePolicy(file=file, state=tmp_path).now.flags == {"a": 1.0, "b": 1.0}
    assert policy.turn({"a": None}) == {"a": 0.2, "b": 1.0}
    assert LivePolicy(file=file, state=tmp_path).now.flags == {"a": 0.2, "b": 1.0}


def test_a_flag_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    policy = LivePolicy(RoutingPolicy(flags={"a": 0.0}), state=tmp_path)
    for turned in ({"a": True, "c": True}, {"a": "sometimes"}):
        with pytest.raises(UsageError):
            policy.turn(turned)
    assert policy.now.flags == {"a": 0.0}


def test_a_policy_that_is_wrong_from_the_start_says_its_files_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    write(file, "rulez: []")
    with pytest.raises(UsageError, match=r"mine\.yaml: Unknown policy key 'rulez'"):
        LivePolicy(file=file)
    with pytest.raises(UsageError, match=r"none\.yaml cannot be read"):
        LivePolicy(file=tmp_path / "none.yaml")
