"""What users may rely on: names, signatures, and options that mean the same in Python and on the command line."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import click
import pytest

import lowbit
from lowbit.cli.main import cli
from lowbit.cli.optimize_language import OWN, SHARED
from lowbit.pipeline.language.request import LanguageOptions
from lowbit.pipeline.request import Options


def test_the_public_names_are_these() -> None:
    assert sorted(lowbit.__all__) == ["Bundle", "Result", "__version__", "optimize"]
    assert all(getattr(lowbit, name) is not None for name in lowbit.__all__)


def test_what_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        lowbit.quantise  # noqa: B018


def test_signatures() -> None:
    torch_only = ["example_inputs", "example_shapes", "weights", "allow_pickle"]
    names = ["model", "data", "out", "reporter", "command", *torch_only, "targets", "options"]
    assert list(inspect.signature(lowbit.optimize).parameters) == names
    assert [field.name for field in fields(lowbit.Result)] == ["decision", "bundle"]
    assert {"load", "session", "decision", "manifest", "folder"} <= set(dir(lowbit.Bundle)) | {f.name for f in fields(lowbit.Bundle)}


def test_the_first_example_of_the_package_is_true() -> None:
    """`optimize(path, data=..., max_drop=...)` binds, and what it returns has what the docstring says."""
    inspect.signature(lowbit.optimize).bind("resnet50.onnx", data="val/", max_drop="1%")
    assert "max_drop" in {field.name for field in fields(Options)}
    assert "session" in dir(lowbit.Bundle)


def test_command_line_and_python_have_the_same_options() -> None:
    command = cli.get_command(click.Context(cli), "optimize")
    assert command is not None
    given = {parameter.name for parameter in command.params} - {"model", "data", "out", "form", *OWN}
    in_python = {field.name for field in fields(Options)} | {"weights", "allow_pickle", "example_shapes", "targets"}
    seconds_and_milliseconds = {"max_latency": "max_latency_ms", "time_limit": "time_limit_s", "qat_time": "qat_minutes"}
    assert {seconds_and_milliseconds.get(name, name) for name in given} == in_python


def test_command_line_and_python_have_the_same_options_for_language_models() -> None:
    in_python = {field.name for field in fields(LanguageOptions)}
    assert {*OWN, *SHARED.values()} - {"data", "out"} == in_python


def test_defaults_are_the_same_in_both() -> None:
    command = cli.get_command(click.Context(cli), "optimize")
    assert command is not None
    context = command.make_context("optimize", ["model.onnx", "--data", "val.npz"])
    ours = Options()
    for name in ("max_drop", "confidence", "objective", "batch", "rounds", "nncf", "prune", "force", "safety_critical"):
        assert context.params[name] == getattr(ours, name), name


def test_types_are_shipped() -> None:
    assert (Path(lowbit.__file__).parent / "py.typed").is_file()
