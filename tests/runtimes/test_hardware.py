from __future__ import annotations

import getpass
import json
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lowbit.runtimes.hardware import cgroup_limits, cpu_name, isa, probe

X86 = "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_tile\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd fphp asimddp i8mm bf16\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_isa_of_x86() -> None:
    assert isa(X86) == ("AVX2", "AVX512", "AVX512-VNNI", "AMX", "AMX-INT8")
    assert cpu_name(X86) == "Intel(R) Xeon(R) CPU"


def test_isa_of_arm() -> None:
    assert isa(ARM) == ("NEON", "NEON-DOTPROD", "NEON-I8MM", "NEON-FP16", "NEON-BF16")
    assert cpu_name(ARM) is None


def test_isa_of_nothing() -> None:
    assert isa("") == ()


def test_cgroup_2_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cpu.max": "max 100000\n",
            "a/cpu.max": "150000 100000\n",
            "a/memory.max": "1000000\n",
            "a/b/cpu.max": "400000 100000\n",
            "a/b/memory.max": "max\n",
        },
    )
    assert cgroup_limits(tmp_path, "0::/a/b\n") == (1.5, 1_000_000)


def test_cgroup_2_seen_from_inside_a_container(tmp_path: Path) -> None:
    write(tmp_path, {"cpu.max": "50000 100000\n", "memory.max": "2000000\n"})
    assert cgroup_limits(tmp_path, "0::/not/mounted/here\n") == (0.5, 2_000_000)


def test_cgroup_1(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
            "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "memory/box/memory.limit_in_bytes": "3000000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cgroup_limits(tmp_path, "4:cpu,cpuacct:/box\n3:memory:/box\n") == (2.0, 3_000_000)


def test_no_cgroup(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path / "none", "0::/\n") == (None, None)
    assert cgroup_limits(tmp_path, "") == (None, None)


def test_probe_of_this_machine() -> None:
    found = probe()
    assert 1 <= found.cores <= found.logical_cores
    assert 1 <= found.physical_cores <= found.logical_cores
    assert found.memory_bytes > 1 << 28
    assert found.versions["numpy"].split(".")[0].isdigit()
    text = json.dumps(asdict(found))
    assert socket.gethostname() not in text
    # A user called like a common word would be found by accident.
    assert getpass.getuser() in ("root", "user", "runner") or getpass.getuser() not in text


@pytest.mark.parametrize(
    ("flags", "int8", "bf16"),
    [
        (("AVX2",), None, False),
        (("AVX512-VNNI", "AVX-VNNI", "AVX512-BF16"), "AVX512-VNNI", True),
        (("AVX512-VNNI", "AMX-INT8"), "AMX-INT8", False),
        (("NEON", "NEON-DOTPROD"), "NEON-DOTPROD", False),
    ],
)
def test_what_the_flags_mean(flags: tuple[str, ...], int8: str | None, bf16: bool) -> None:
    found = replace(probe(), isa=flags)
    assert (found.int8, found.bf16) == (int8, bf16)
