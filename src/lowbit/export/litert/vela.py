"""What Arm's compiler for Ethos-U says of a .tflite file: memory, share of operators on the NPU, time.

These are a compiler's estimates on a model of the chip (`ethos-u-vela`); nothing is executed, and every number that leaves here says so.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import ModelError, UsageError
from lowbit.export.base import Setting
from lowbit.plugins import installed_version

NPUS = ("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512")
LABEL = "compiler estimate"
_TIMEOUT_S = 600
_START = "import sys; from ethosu.vela.vela import main; sys.exit(main())"
"""As its own script does, with this Python: the script need not be on the path."""


@dataclass(frozen=True)
class Estimate:
    """What the compiler expects.

    Attributes:
        npu: Its configuration, one of `NPUS`.
        version: Of the compiler.
        system: Model of the chip around it, e.g. "Ethos_U55_High_End_Embedded": the compiler's default, as is the memory mode.
        sram_bytes: Peak.
        flash_bytes: Weights and commands.
        operators: Of the file.
        on_npu: Of these, those that run on the NPU; the others run on the CPU.
        milliseconds: Per inference.
        reasons: Why operators stay on the CPU, in the compiler's words.
    """

    npu: str
    version: str
    system: str
    sram_bytes: int
    flash_bytes: int
    operators: int
    on_npu: int
    milliseconds: float
    reasons: tuple[str, ...]

    def facts(self) -> dict[str, Setting]:
        """For an artifact; each name says that it is an estimate."""
        return {
            "ethos_u": f"{LABEL}: vela {self.version}, {self.npu}, {self.system}",
            "ethos_u_estimated_sram_bytes": self.sram_bytes,
            "ethos_u_estimated_flash_bytes": self.flash_bytes,
            "ethos_u_estimated_npu_share": round(self.on_npu / self.operators, 4) if self.operators else 0.0,
            "ethos_u_estimated_ms": self.milliseconds,
        }


def version() -> str | None:
    """Of the compiler; None where it is not installed."""
    return installed_version("ethosu", "ethos-u-vela")


def estimate(model: bytes, npu: str = "ethos-u55-128", keep: Path | None = None) -> Estimate:
    """Compiles a .tflite file for an Ethos-U.

    Args:
        model: The file's content.
        npu: One of `NPUS`.
        keep: Where the compiled file is written, if anywhere: a .tflite file again, with one custom operator for each part on the NPU.

    Raises:
        UsageError: the compiler is not installed, or knows no such NPU.
        ModelError: it refuses the file.
    """
    found = version()
    if found is None:
        raise UsageError("The compiler for Ethos-U is not installed.", "pip install 'lowbit[vela]'")
    if npu not in NPUS:
        raise UsageError(f"'{npu}' is no Ethos-U configuration.", f"Allowed: {', '.join(NPUS)}.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.tflite"
        source.write_bytes(model)
        said = _compile(source, npu)
        row = next(csv.DictReader(next(source.parent.glob("out/*summary*.csv")).open(encoding="utf-8")))
        if keep is not None:
            keep.write_bytes((source.parent / "out" / "model_vela.tflite").read_bytes())
    return _read(row, said, npu, found)


def _compile(source: Path, npu: str) -> str:
    """Runs the compiler beside a file; what it printed."""
    command = [sys.executable, "-c", _START, "--accelerator-config", npu, "--output-dir", str(source.parent / "out")]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=source.parent)
    if done.returncode != 0 or not list(source.parent.glob("out/*summary*.csv")):
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-3:]
        raise ModelError(f"vela refuses the file for {npu}: {' '.join(last)}", "Export it without the wish `ethos_u`.")
    return done.stdout


def _read(row: dict[str, str], said: str, npu: str, compiler: str) -> Estimate:
    """The summary has kibibytes and seconds; the shares are only printed."""
    counts = {place: int(number) for place, number in re.findall(r"(CPU|NPU) operators = (\d+)", said)}
    reasons = re.findall(r"Warning \(supported operators\) operator: (\w+), ofm: '([^']*)'\s*\n\s*Reason: (.*)", said)
    return Estimate(
        npu,
        compiler,
        row["system_config"],
        sram_bytes=round(float(row["sram_memory_used"]) * 1024),
        flash_bytes=round((float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"])) * 1024),
        operators=sum(counts.values()),
        on_npu=counts.get("NPU", 0),
        milliseconds=float(row["inference_time"]) * 1e3,
        reasons=tuple(f"{kind} ({name}): {why}" for kind, name, why in reasons),
    )
