"""`lowbit doctor`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from typing import Any

import click

from lowbit.cli.options import output

EXTRAS = {
    "openvino": "openvino",
    "nncf": "nncf",
    "detection": "pycocotools",
    "parquet": "pyarrow",
    "nvml": "pynvml",
    "text": "tokenizers",
    "serve": "uvicorn",
    "otel": "opentelemetry",
    "ray": "ray",
    "redis": "redis",
    "sign": "cryptography",
    "mlflow": "mlflow",
    "torch": "torch",
    "huggingface": "transformers",
    "openvino-genai": "openvino_genai",
    "llamacpp": "llama_cpp",
    "onnxruntime-genai": "onnxruntime_genai",
    "language": "jinja2",
    "tasks": "lm_eval",
    "litert": "ai_edge_litert",
    "tflite-micro": "tflite_micro",
    "qnn": "onnxruntime_qnn",
    "coreml": "coremltools",
    "vela": "ethosu",
}
"""Extra -> the module that it brings."""


@click.command("doctor", short_help="Say what this machine can run, and what is missing.")
@output
def command(form: str) -> None:
    """Say what this machine can run, and what is missing: instruction sets, memory, accelerators, runtimes, extras."""
    from lowbit import __version__
    from lowbit.runtimes import registry
    from lowbit.runtimes.hardware import probe

    hardware = probe()
    extras = {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()}
    runtimes = [runtime.describe() for runtime in registry.available()]
    runtimes += [{**runtime.describe(), "used": f"on request: --runtime {runtime.name}"} for runtime in registry.on_request()]
    found: dict[str, Any] = {
        "lowbit": __version__,
        "hardware": asdict(hardware),
        "runtimes": runtimes,
        "extras": extras,
        "advice": advice(hardware, extras),
    }
    if form == "json":
        click.echo(json.dumps(found, indent=1))
        return
    memory = hardware.memory_bytes / 1e9
    click.echo(f"lowbit {__version__} on {hardware.system}, Python {hardware.python}")
    click.echo(f"CPU          {hardware.cpu}, {hardware.cores} usable of {hardware.logical_cores} logical cores, {memory:.1f} GB")
    click.echo(f"ISA          {', '.join(hardware.isa) or 'nothing beyond the base'}")
    click.echo(f"INT8         {hardware.int8 or 'no dot-product instructions: INT8 may be no faster than FP32'}")
    click.echo(f"16 bit       {'bfloat16' if hardware.bf16 else 'not native'}")
    click.echo(f"Accelerator  {hardware.accelerator or 'none'}")
    for runtime in runtimes:
        click.echo(f"Runtime      {', '.join(f'{key} {value}' if key != 'name' else value for key, value in runtime.items())}")
    for extra, present in extras.items():
        click.echo(f"Extra        {extra}: {'installed' if present else f'missing (pip install lowbit[{extra}])'}")
    for line in found["advice"]:
        click.secho(line, fg="yellow")


def advice(hardware: Any, extras: dict[str, bool]) -> list[str]:
    """What would make results better here. Pure."""
    lines = []
    if not extras["openvino"] and hardware.architecture in ("x86_64", "AMD64"):
        lines.append("Install openvino: on x86 it is often the fastest runtime for INT8 models.")
    if hardware.int8 is None:
        lines.append("This CPU has no INT8 dot products: expect smaller models, not much faster ones.")
    if hardware.cores < hardware.logical_cores:
        lines.append(f"Only {hardware.cores} of {hardware.logical_cores} cores may be used here; timings hold for that many.")
    return lines
