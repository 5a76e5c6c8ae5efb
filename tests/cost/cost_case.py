"""Workloads, prices and a bundle's evidence that the tests of this room share."""

from __future__ import annotations

from typing import Any

from lowbit.cost.evidence import Evidence, Variant
from lowbit.cost.figures import measured
from lowbit.cost.prices import Discount, Price, PriceTable
from lowbit.cost.workload import Workload, parse_workload

TABLE = PriceTable(
    (
        Price("aws", "small", 0.10, "a test", vcpus=2),
        Price("aws", "large", 0.40, "a test", spot_low=0.10, spot_high=0.20, vcpus=8),
        Price("gcp", "gpu", 1.00, "a test", accelerator="T4", accelerators=1, accelerator_gb=16),
        Price("aws", "there", 1.00, "a test", region="us-east-1"),
        Price("aws", "there", 1.20, "a test", region="eu-west-1"),
    ),
    (Discount("gcp", 0.7, 0.6, 0.9, "gcp's page"), Discount("any", 0.7, 0.0, 0.9, "a report")),
    "the test's table",
)


def workload(**raw: Any) -> Workload:
    """One with a load of 100 requests a second at the peak on four small machines at 10 ms, and INT8 at 4 ms."""
    usual: dict[str, Any] = {
        "requests_per_month": 1e8,
        "peak_per_second": 100,
        "latency_target_ms": 100,
        "today": {"instance": "small", "precision": "fp32", "instances": 4, "latency_ms": 30},
        "candidates": [{"name": "int8", "instance": "small", "precision": "int8", "latency_ms": 8, "quality": "as before"}],
        "effort": {"usd": 100},
    }
    return parse_workload({key: value for key, value in (usual | raw).items() if value is not None}, "test.yaml")


def evidence(verdict: str = "ship", accelerator: str = "") -> Evidence:
    """A baseline of 20 ms, INT8 at 5 ms alone and 24 ms in batches of eight, 4 times as fast within 3.8 to 4.2."""
    base = Variant("fp32@onnxruntime", "fp32", "keep", {1: measured(20, "ms", "base"), 8: measured(160, "ms", "base")})
    int8 = Variant(
        "int8@openvino",
        "int8",
        verdict,
        {1: measured(5, "ms", "int8", (4.8, 5.2)), 8: measured(24, "ms", "int8 batch 8")},
        measured(4, "×", "paired rounds", (3.8, 4.2)),
        measured(22, "MB", "the file"),
        "top-1 −0.2 pp [−0.5, +0.1], n = 2,000",
        measured(0.004, "CPU s", "int8"),
    )
    return Evidence("model.onnx", verdict, base, int8, accelerator=accelerator, machine="a machine")
