"""The house's rules on imports: one direction, heavy libraries late, telemetry off before anything that has some."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from conftest import missing

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowbit"

ROOMS = (
    "cli",
    "serving",
    "rollout",
    "pipeline",
    "registry",
    "monitoring",
    "export",
    "bundle",
    "train",
    "llm",
    "compress",
    "measure",
    "runtimes",
    "graph",
    "frontends",
    "data",
    "quant",
    "cost",
    "recipe",
    "strict",
    "plugins",
    "types",
    "errors",
)
"""Each may import those after it, and itself."""
FREE = ("__init__", "quiet")
"""The version, and a module that imports nothing of ours: anyone may."""

HEAVY = (
    "torch",
    "coremltools",
    "ai_edge_litert",
    "tflite_micro",
    "flatbuffers",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "sklearn",
    "scipy",
    "rich",
    "pyarrow",
    "PIL",
    "pydantic",
    "transformers",
    "safetensors",
    "tokenizers",
    "pynvml",
    "uvicorn",
    "starlette",
    "grpc",
    "prometheus_client",
    "redis",
    "ray",
    "opentelemetry",
    "mlflow",
    "cryptography",
    "openvino_genai",
    "onnxruntime_genai",
    "llama_cpp",
    "gguf",
    "compressed_tensors",
    "lm_eval",
)
TOP_LEVEL = {"bundle": {"pydantic"}, "train": {"torch"}, "llm": {"torch"}, "serving": {"uvicorn", "grpc", "prometheus_client", "starlette"}}
"""Rooms that are made of a library: it may stand at the top of their files."""

FILES = sorted(SOURCE.rglob("*.py"))


def name_of(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def room_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else file.stem


def modules_in(node: ast.AST) -> list[str]:
    """Full names that one statement imports; `from lowbit import x` is lowbit.x."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "imports are absolute here"
    assert node.module is not None
    return [f"{node.module}.{alias.name}" for alias in node.names]


def imports_of(file: Path) -> list[str]:
    """Everything a file imports anywhere: at the top, in functions, and for type checkers alone."""
    return [name for node in ast.walk(ast.parse(file.read_text())) for name in modules_in(node)]


def rooms_imported(file: Path) -> set[str]:
    found = set()
    for name in imports_of(file):
        first, *rest = name.split(".")
        if first == "lowbit":
            found.add(rest[0] if rest and rest[0] in (*ROOMS, "quiet") else "__init__")
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(file)
    if room in ("__init__", "__main__"):
        assert rooms_imported(file) <= {"__init__", "quiet", "bundle", "pipeline", "cli"}
        return
    if room in FREE:
        assert rooms_imported(file) == set()
        return
    assert room in ROOMS, f"{room} has no place in the order"
    allowed = {*ROOMS[ROOMS.index(room) :], *FREE}
    assert rooms_imported(file) <= allowed, f"{file.name} imports against the arrow"


def test_the_check_would_notice_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "quant" / "bad.py"
    file.parent.mkdir()
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    for line in ("import lowbit.pipeline.decide", "from lowbit import cli", "def f():\n    from lowbit.graph.load import load_model"):
        file.write_text(line)
        with pytest.raises(AssertionError):
            test_imports_run_one_way(file)
    file.write_text("from lowbit import __version__\nfrom lowbit.types import Array")
    test_imports_run_one_way(file)


def test_runtimes_never_import_each_other() -> None:
    from lowbit.runtimes.registry import BUILT_IN, ON_REQUEST

    homes = {name: target.partition(":")[0] for name, target in (BUILT_IN | ON_REQUEST).items()}
    for name, home in homes.items():
        others = set(homes.values()) - {home}
        file = SOURCE.joinpath(*home.split(".")[1:]).with_suffix(".py")
        assert [found for found in imports_of(file) if any(found.startswith(other) for other in others)] == [], name


def at_the_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, without those for type checkers."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_needed(file: Path) -> None:
    late = set(HEAVY) - TOP_LEVEL.get(room_of(file), set())
    found = {name.split(".")[0] for node in at_the_top(ast.parse(file.read_text())) for name in modules_in(node)}
    assert not found & late, f"{file.name} imports {found & late} when it is imported itself"


def python(code: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs code in a fresh interpreter; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "code",
    ["import lowbit", "from lowbit.cli.main import cli; cli.main(['--help'], standalone_mode=False)"],
    ids=["import lowbit", "lowbit --help"],
)
def test_starting_is_light(code: str) -> None:
    found = python(f"import sys; {code}; print('LOADED', *(name for name in {HEAVY} if name in sys.modules))")
    assert found.splitlines()[-1].split() == ["LOADED"]


def test_import_lowbit_imports_next_to_nothing() -> None:
    found = python(
        "import sys; import lowbit; print(*(name for name in sys.modules if name.split('.')[0] in ('lowbit', 'numpy', 'click')))"
    )
    assert sorted(found.split()) == ["lowbit", "lowbit.quiet"]


@pytest.mark.parametrize("module", ["lowbit.graph.prepare", "lowbit.runtimes.openvino_cpu", "lowbit.cli.main"])
def test_telemetry_of_dependencies_is_off_before_any_of_them_is_imported(module: str) -> None:
    """The first import decides, wherever it happens; so whatever of lowbit is imported has to be earlier."""
    code = f"import os, sys, {module}; print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    assert python(code, environment).split() == ["1", "None"]
    loaded = python(f"import sys, {module}; print('LOADED', *(n for n in ('onnxruntime', 'openvino', 'nncf') if n in sys.modules))")
    assert loaded.split() == ["LOADED"]


def test_help_is_quick() -> None:
    """Under 0.3 s; the best of five, because the machine may have other work."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lowbit", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


# Extras ----------------------------------------------------------------------------------------------------------------


def extras() -> dict[str, list[str]]:
    """Distributions of the extras for users, without those that only refer to other extras."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra: [re.split(r"[<>=!\[; ]", text)[0] for text in texts] for extra, texts in optional.items() if extra != "dev"}
    return {extra: [name for name in names if name != "lowbit"] for extra, names in named.items()}


def modules_of(distribution: str) -> list[str]:
    """Names that a distribution lets one import."""
    wanted = distribution.lower().replace("_", "-")
    found = [module for module, owners in metadata.packages_distributions().items() for owner in owners if same(owner, wanted)]
    return sorted({module for module in found if module.isidentifier() and not module.startswith("_")})


def same(owner: str, wanted: str) -> bool:
    return owner.lower().replace("_", "-") == wanted


@pytest.mark.parametrize(("extra", "distribution"), [(extra, name) for extra, names in extras().items() for name in names])
def test_what_is_installed_for_an_extra_imports(extra: str, distribution: str) -> None:
    """Some packages install well and fail on import."""
    modules = modules_of(distribution)
    if not modules:
        missing(f"{distribution} (extra '{extra}')")
    main = [module for module in modules if module.lower().replace("_", "-") == distribution.lower()] or modules
    printed = python(f"import lowbit, {', '.join(main)}; print('imported')", {**os.environ, "HF_HUB_OFFLINE": "1"})
    assert printed.splitlines()[-1] == "imported"


def test_doctor_knows_every_extra_for_users() -> None:
    from lowbit.cli.doctor import EXTRAS

    assert set(EXTRAS) == {extra for extra, names in extras().items() if names and extra != "train"}
