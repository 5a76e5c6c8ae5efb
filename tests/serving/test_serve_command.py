"""`lowbit serve` says what is wrong before it loads anything, and in words."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
from cli_runner import lowbit
from serving_case import tiny_bundle

from lowbit.errors import UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("command") / "tiny")


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *args: lowbit(capfd, monkeypatch, "serve", *args)


def test_a_folder_that_is_no_bundle(shell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = shell(tmp_path, "--port", 0, "--no-grpc")
    assert done.code == 2
    assert "is not a bundle" in done.err


def test_a_busy_port_is_said_before_anything_is_loaded(shell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in (
            ("--port", port, "--no-grpc"),
            ("--port", 0, "--grpc-port", port),
            ("--port", port, "--no-grpc", "--reuse-port"),
            ("--port", 0, "--grpc-port", port, "--reuse-port"),
        ):
            done = shell(tmp_path / "no such bundle", *option)
            assert done.code == 2
            assert f"Cannot listen on 127.0.0.1:{port}" in done.err


def test_rest_and_grpc_on_one_port_is_said_before_anything_is_loaded(shell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for more in ((), ("--reuse-port",)):
        done = shell(tmp_path / "no such bundle", "--port", 18123, "--grpc-port", 18123, *more)
        assert (done.code, "cannot share port 18123" in done.err) == (2, True)


def test_two_models_of_one_name(shell, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    done = shell(bundle, f"tiny={bundle}", "--port", 0, "--no-grpc")
    assert (done.code, "named 'tiny'" in done.err) == (2, True)


def test_a_variant_that_is_not_there(shell, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    done = shell(bundle, "--variants", "chosen,int4", "--port", 0, "--no-grpc")
    assert done.code == 2
    assert "Unknown variant 'int4'" in done.err


def test_options_that_do_not_go_together(shell, bundle: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").write_text("# no key\n")
    (tmp_path / "nonsense.pem").write_text("nonsense")
    pem = tmp_path / "nonsense.pem"
    for options, words in (
        (("--tls-certificate", pem), "certificate and its key"),
        (("--tls-certificate", pem, "--tls-key", pem), "cannot be used"),
        (("--api-key-file", tmp_path / "empty"), "There is no key"),
        (("--api-key-file", tmp_path / "missing"), "there is no file"),
        (("--linger", "30s"), "leaves nothing"),
        (("--window", "soon"), "not a duration"),
    ):
        done = shell(bundle, "--port", 0, *options)
        assert done.code == 2, options
        assert words in done.err


def test_keys_come_from_file_and_environment_never_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.cli.serve import _keys, command

    (tmp_path / "keys").write_text("# two\nfirst\n\nsecond\n")
    monkeypatch.setenv("LOWBIT_API_KEYS", "third, fourth")
    assert set(_keys(tmp_path / "keys")) == {"first", "second", "third", "fourth"}
    assert set(_keys(None)) == {"third", "fourth"}
    (tmp_path / "keys").write_text("\ufeffsecond\n  # not a key\n", encoding="utf-8")
    assert _keys(tmp_path / "keys") == ("third", "fourth", "second")
    monkeypatch.delenv("LOWBIT_API_KEYS")
    assert _keys(None) == ()
    assert not any("--api-key" in option.opts for option in command.params)


@pytest.mark.parametrize("text", ["", " , ", "# off"])
def test_an_environment_without_a_key_does_not_leave_the_server_open(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.cli.serve import _keys

    monkeypatch.setenv("LOWBIT_API_KEYS", text)
    (tmp_path / "keys").write_text("first\n")
    for file in (None, tmp_path / "keys"):
        with pytest.raises(UsageError, match="There is no key in LOWBIT_API_KEYS"):
            _keys(file)


def test_a_file_of_keys_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.cli.serve import _keys

    monkeypatch.delenv("LOWBIT_API_KEYS", raising=False)
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00key")
    with pytest.raises(UsageError, match="The keys in keys cannot be read: it is not UTF-8"):
        _keys(tmp_path / "keys")
    with pytest.raises(UsageError, match="cannot be read"):
        _keys(tmp_path)  # a folder
    (tmp_path / "keys").write_text("  # a comment that is indented\n")
    with pytest.raises(UsageError, match="There is no key in keys"):
        _keys(tmp_path / "keys")


def test_traces_without_their_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from lowbit.serving.watch.traces import Traces

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UsageError, match="OpenTelemetry"):
        Traces()


def test_the_table_of_what_is_served(bundle: Path) -> None:
    import sys

    command = [sys.executable, "-m", "lowbit", "serve", str(bundle), "--port", "0", "--no-grpc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        assert process.wait(30) == 0
    assert [line.split()[0] for line in lines] == ["tiny", "tiny", "REST"]
    assert "chosen" in lines[0]
    assert "batch up to 8" in lines[0]


def test_versions_come_from_a_registry_that_is_named_and_there(shell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    port = ("--port", 0, "--no-grpc")
    done = shell("fashion@champion", *port)
    assert (done.code, "--registry DIR" in done.err) == (2, True)
    done = shell("fashion@champion", "--registry", tmp_path / "none", *port)
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert not (tmp_path / "none").exists()
    done = shell("web=fashion@no such alias", "--registry", tmp_path, *port)
    assert (done.code, "names no version" in done.err) == (2, True)
