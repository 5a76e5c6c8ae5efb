"""What this machine can do, as far as it decides how fast a model runs. Never user or host names."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ISA_FLAGS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx_vnni_int8": "AVX-VNNI-INT8",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_tile": "AMX",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
    "asimd": "NEON",
    "asimddp": "NEON-DOTPROD",
    "i8mm": "NEON-I8MM",
    "fphp": "NEON-FP16",
    "bf16": "NEON-BF16",
    "sve": "SVE",
}
"""Flags of /proc/cpuinfo ("flags" on x86, "Features" on Arm) -> our words."""

NUMPY_FLAGS = {
    "AVX2": "AVX2",
    "FMA3": "FMA",
    "F16C": "F16C",
    "AVX512F": "AVX512",
    "AVX512_CLX": "AVX512-VNNI",
    "AVX512_ICL": "AVX512-VNNI",
    "AVX512_SPR": "AVX512-FP16",
    "ASIMD": "NEON",
    "ASIMDDP": "NEON-DOTPROD",
    "ASIMDHP": "NEON-FP16",
    "SVE": "SVE",
}
"""numpy's own detection, for systems without /proc; it knows fewer."""

PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Hardware:
    """What was found; `dataclasses.asdict` is the manifest's `environment`.

    Attributes:
        cpu: Model name.
        architecture: "x86_64", "aarch64", ...
        cores: What this process may use: of the logical cores, those in its affinity mask and its container's quota.
        physical_cores: In the machine.
        logical_cores: In the machine.
        isa: Instruction sets that matter for quantized and 16-bit arithmetic.
        memory_bytes: The machine's, or its container's limit where that is lower.
        accelerator: Name and memory of the first NVIDIA GPU, None where there is none.
        system: Operating system and its version.
        python: Version.
        versions: Package -> version, of those installed.
    """

    cpu: str
    architecture: str
    cores: int
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]
    memory_bytes: int
    accelerator: str | None
    system: str
    python: str
    versions: dict[str, str]

    @property
    def int8(self) -> str | None:
        """The best INT8 instructions, None where INT8 runs on plain vector code (little to gain there)."""
        ranked = ("AMX-INT8", "AVX512-VNNI", "AVX-VNNI", "NEON-I8MM", "NEON-DOTPROD")
        return next((flag for flag in ranked if flag in self.isa), None)

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 arithmetic is native."""
        return any(flag in self.isa for flag in ("AMX-BF16", "AVX512-BF16", "NEON-BF16"))


def probe(packages: Sequence[str] = ()) -> Hardware:
    """Looks at this machine. Takes milliseconds; reads files and asks the system, runs nothing.

    Args:
        packages: Whose versions to tell besides those that every run uses.
    """
    import psutil

    cpuinfo = _read(Path("/proc/cpuinfo"))
    logical = psutil.cpu_count(logical=True) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    quota, memory_limit = cgroup_limits(Path("/sys/fs/cgroup"), _read(Path("/proc/self/cgroup")))
    memory = psutil.virtual_memory().total
    return Hardware(
        cpu=cpu_name(cpuinfo) or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=max(1, min(allowed, int(quota + 0.5) if quota else allowed)),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        isa=isa(cpuinfo) or _numpy_isa(),
        memory_bytes=min(memory, memory_limit or memory),
        accelerator=_accelerator(),
        system=_system(),
        python=platform.python_version(),
        versions=_versions((*PACKAGES, *packages)),
    )


def isa(cpuinfo: str) -> tuple[str, ...]:
    """Instruction sets named in the text of /proc/cpuinfo, in the order of `ISA_FLAGS`."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    present = set(match[1].split()) if match else set()
    return tuple(word for flag, word in ISA_FLAGS.items() if flag in present)


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's model name; Arm kernels print none."""
    match = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return " ".join(match[1].split()) if match else None


def cgroup_limits(root: Path, membership: str) -> tuple[float | None, int | None]:
    """Cores and bytes that control groups leave to this process; None = not limited.

    A limit anywhere between the process's group and the root holds, so the smallest counts.

    Args:
        root: Where control groups are mounted, /sys/fs/cgroup.
        membership: Text of /proc/self/cgroup.
    """
    cores: list[float] = []
    memory: list[int] = []
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        for folder in _upwards(root, controllers, group):
            cores += _core_limit(folder)
            memory += _memory_limit(folder)
    return min(cores, default=None), min(memory, default=None)


def _upwards(root: Path, controllers: str, group: str) -> Iterable[Path]:
    """The group's folder and all above it. Version 2 has no controller names; version 1 has a tree for each."""
    top = root / controllers if controllers else root
    folder = top / group.strip("/")
    # Inside a container the path is the host's and may not exist here: then the root shows the container's own limits.
    return [path for path in (folder, *folder.parents) if path.is_relative_to(top)]


def _core_limit(folder: Path) -> list[float]:
    quota, *rest = _read(folder / "cpu.max").split() or ["max"]
    period = rest[0] if rest else "100000"
    if quota == "max":  # not version 2, or no limit
        quota = _read(folder / "cpu.cfs_quota_us").strip() or "-1"
        period = _read(folder / "cpu.cfs_period_us").strip() or "100000"
    return [int(quota) / int(period)] if int(quota) > 0 else []


def _memory_limit(folder: Path) -> list[int]:
    text = _read(folder / "memory.max").strip() or _read(folder / "memory.limit_in_bytes").strip()
    # Version 1 writes "no limit" as a number just below 2**63.
    return [int(text)] if text.isdigit() and int(text) < 1 << 60 else []


def _numpy_isa() -> tuple[str, ...]:
    try:
        features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):  # not a public name
        return ()
    return tuple(dict.fromkeys(word for flag, word in NUMPY_FLAGS.items() if features.get(flag)))


def _accelerator() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, no driver, no device: the library has an error class for each
        return None
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = pynvml.nvmlDeviceGetName(device)
        memory = pynvml.nvmlDeviceGetMemoryInfo(device).total
        return f"{name.decode() if isinstance(name, bytes) else name} ({memory / 2**30:.0f} GiB)"
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError, AttributeError):
        return f"{platform.system()} {platform.release()}"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
