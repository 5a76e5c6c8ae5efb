from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.measure.energy import HIGH, LOW, TYPICAL, energy, find_meter


def zone(root: Path, name: str, microjoules: int, maximum: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{maximum}\n")
    return folder / "energy_uj"


def test_rapl_sums_packages_and_leaves_subzones_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 5_000_000), zone(tmp_path, "intel-rapl:1", 0)
    core = zone(tmp_path, "intel-rapl:0:0", 0)
    meter = find_meter("cpu", tmp_path)
    assert meter is not None
    assert meter.method.startswith("rapl")
    start = meter.read()
    for file, value in ((first, 7_500_000), (second, 1_000_000), (core, 900_000_000)):
        file.write_text(str(value))
    assert meter.read() - start == pytest.approx(3.5)


def test_rapl_counter_that_starts_over(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 9_000_000, maximum=10_000_000)
    meter = find_meter("cpu", tmp_path)
    assert meter is not None
    start = meter.read()
    counter.write_text("2_000_000".replace("_", ""))
    assert meter.read() - start == pytest.approx(3.0)
    counter.write_text("4000000")
    assert meter.read() - start == pytest.approx(5.0)


def test_no_meter_where_there_is_no_counter(tmp_path: Path) -> None:
    assert find_meter("cpu", tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert find_meter("cpu", tmp_path) is None


def test_what_a_meter_counted_goes_before_the_model() -> None:
    found = energy(wall_s=0.01, cpu_s=0.02, cores=2, joules=0.5, method="rapl (whole processor package)")
    assert (found.joules_per_inference, found.method) == (0.5, "rapl (whole processor package)")
    assert (found.low, found.high) == (None, None)
    assert found.cpu_seconds_per_inference == 0.02


def test_model_has_a_range_and_says_its_coefficients() -> None:
    # One second, two cores, one of them busy: two idle shares and one difference to busy.
    found = energy(wall_s=1.0, cpu_s=1.0, cores=2)
    assert found.joules_per_inference == pytest.approx(TYPICAL.idle + TYPICAL.busy)
    assert found.low == pytest.approx(LOW.idle + LOW.busy)
    assert found.high == pytest.approx(HIGH.idle + HIGH.busy)
    assert "modelled" in found.method
    assert str(TYPICAL.busy) in found.method
    assert found.cpu_seconds_per_inference == 1.0


def test_model_never_counts_more_than_all_cores_busy() -> None:
    assert energy(wall_s=1.0, cpu_s=99.0, cores=2).joules_per_inference == pytest.approx(2 * TYPICAL.busy)


def test_unavailable() -> None:
    found = energy(wall_s=0.0, cpu_s=0.0, cores=2)
    assert (found.joules_per_inference, found.method) == (None, "unavailable")
