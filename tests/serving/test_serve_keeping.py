"""Options for what is kept are read as they are meant, and what is wrong with them is said before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runner import lowbit
from serving_case import INPUT, tiny_bundle

from lowbit.cli.serve_keeping import price_of, read_keeping
from lowbit.errors import UsageError
from lowbit.monitoring.samples import Redaction
from lowbit.monitoring.sla import Sla
from lowbit.serving.keep.settings import KeepSettings
from lowbit.serving.keep.spending import Price

NOTHING: dict[str, Any] = {
    "window_every": 60.0,
    "feedback": False,
    "sample_inputs": 0.0,
    "sample_keep": 2000,
    "sample_age": 7 * 86400.0,
    "redact": (),
    "webhook": None,
    "price": None,
    "sla": None,
}


def test_what_nobody_asks_for_is_not_kept() -> None:
    found = read_keeping(NOTHING)
    assert found == KeepSettings()
    assert found.lasting is None
    assert (found.retention.samples, found.retention.samples_s) == (2000, 7 * 86400)


def test_every_option_lands_where_it_belongs() -> None:
    given = {"feedback": True, "sample_inputs": 0.1, "redact": ("name", "face=blur", "age=drop"), "sla": "50ms:0.95", "price": "$0.05"}
    found = read_keeping({**NOTHING, **given})
    assert found.redaction == Redaction(frozenset({"name", "age"}), frozenset({"face"}))
    assert found.sla == Sla(0.05, 0.95)
    assert found.price == Price(0.05, "--price")
    assert (found.sample, found.lasting) == (0.1, "feedback")


def test_a_price_is_a_number_or_an_instance_of_the_table() -> None:
    found = price_of("t3.medium")
    assert 0 < found.usd_per_hour < 1
    assert "t3.medium" in found.source
    for wrong in ("t3.tiny", "0", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match="--price"):
            price_of(wrong)


def test_what_is_wrong_is_said_in_words(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle, state = tiny_bundle(tmp_path / "tiny"), ("--state", tmp_path / "state")
    for options, words in (
        (("--feedback",), "--state FOLDER"),
        (("--sample-inputs", "0.1"), "--state FOLDER"),
        (("--sample-inputs", "2"), "is not in the range"),
        (("--webhook", "http://127.0.0.1:9/"), "--state FOLDER"),
        ((*state, "--webhook", "mail:me"), "http or https"),
        ((*state, "--feedback", "--no-record"), "--no-record"),
        ((*state, "--window-every", "10ms"), "too short"),
        ((*state, "--redact", "name=hide"), "INPUT=blur"),
        ((*state, "--redact", "=blur"), "INPUT=blur"),
        ((*state, "--redact", "imput"), f"Its inputs: {INPUT}"),
        ((*state, "--sla", "soon"), "is not a promise"),
        ((*state, "--price", "cheap"), "--price"),
    ):
        done = lowbit(capfd, monkeypatch, "serve", bundle, "--port", 0, "--no-grpc", *options)
        assert done.code == 2, (options, done.err)
        assert words in done.err, (options, done.err)
