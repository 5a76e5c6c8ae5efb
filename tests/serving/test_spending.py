"""What variants cost: shares of what was measured, each with how it was found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lowbit.measure.energy import Meter
from lowbit.monitoring.tally import Key
from lowbit.serving.keep.spending import ELSEWHERE, SHARED, Price, Ran, Spending, bill, of_server

FAST, SLOW = Key("net", "1", "int8"), Key("net", "1", "fp32")


@dataclass
class Machine:
    """Clocks that a test turns."""

    wall: float = 100.0
    cpu: float = 5.0
    joules: float = 1000.0

    def spending(self, *, elsewhere: bool = False, metered: bool = False) -> Spending:
        meter = Meter("rapl (whole processor package)", lambda: self.joules) if metered else None
        return Spending(elsewhere=elsewhere, meter=meter, cpu=lambda: self.cpu, clock=lambda: self.wall, cores=2)


def test_cpu_seconds_are_shared_out_by_run_time_and_threads() -> None:
    machine = Machine()
    spending = machine.spending()
    machine.wall, machine.cpu = 110.0, 13.0
    found = spending.share({FAST: Ran(1.0, 1, 100, 100), SLOW: Ran(1.5, 2, 50, 50)})
    assert {key: each.cpu_s for key, each in found.items()} == pytest.approx({FAST: 2.0, SLOW: 6.0})
    assert spending.use == pytest.approx(8 / 20)
    machine.wall, machine.cpu = 120.0, 14.0
    found = spending.share({FAST: Ran(2.0, 1, 200, 200), SLOW: Ran(1.5, 2, 50, 50)})
    assert {key: each.cpu_s for key, each in found.items()} == pytest.approx({FAST: 3.0, SLOW: 6.0})
    assert (spending.cpu_s, spending.up_s) == (9.0, 20.0)


def test_time_without_runs_is_nobodys_and_still_the_servers() -> None:
    machine = Machine()
    spending = machine.spending()
    machine.wall, machine.cpu = 110.0, 6.0
    assert spending.share({FAST: Ran(0.0, 1, 0, 0)})[FAST].cpu_s == 0.0
    assert spending.cpu_s == 1.0


def test_models_that_run_elsewhere_cost_their_run_time() -> None:
    machine = Machine()
    spending = machine.spending(elsewhere=True)
    machine.cpu = 50.0
    assert spending.share({SLOW: Ran(1.5, 2, 50, 50)})[SLOW].cpu_s == 3.0
    assert spending.method == ELSEWHERE


def test_a_meter_is_shared_out_too_and_without_one_energy_is_modelled_with_a_range() -> None:
    machine = Machine()
    metered, modelled = machine.spending(metered=True), machine.spending()
    machine.wall, machine.cpu, machine.joules = 110.0, 9.0, 1030.0
    ran = {FAST: Ran(2.0, 1, 10, 10), SLOW: Ran(4.0, 1, 10, 10)}
    found = metered.share(ran)
    assert (found[FAST].joules, found[SLOW].joules) == (pytest.approx(10.0), pytest.approx(20.0))
    energy = metered.energy(found[SLOW], 10)
    assert (energy.joules_per_inference, energy.low) == (pytest.approx(2.0), None)
    assert energy.method == "rapl (whole processor package), shared out by run time"
    energy = modelled.energy(modelled.share(ran)[SLOW], 10)
    assert energy.method.startswith("modelled")
    assert energy.low is not None
    assert energy.high is not None
    assert energy.joules_per_inference is not None
    assert energy.low < energy.joules_per_inference < energy.high


def test_a_meter_that_goes_away_leaves_the_model() -> None:
    machine = Machine()

    def read() -> float:
        if machine.wall > 100:
            raise OSError("gone")
        return 0.0

    spending = Spending(meter=Meter("rapl", read), cpu=lambda: machine.cpu, clock=lambda: machine.wall, cores=2)
    machine.wall, machine.cpu = 110.0, 6.0
    found = spending.share({FAST: Ran(1.0, 1, 10, 10)})
    assert spending.energy(found[FAST], 10).method.startswith("modelled")


def test_a_bill_says_how_every_number_was_found() -> None:
    machine = Machine()
    spending = machine.spending()
    machine.wall, machine.cpu = 100.0 + 3600, 5.0 + 36
    ran = {FAST: Ran(30.0, 1, 6000, 6400)}
    spent = spending.share(ran)[FAST]
    price = Price(0.0416, "--price")
    found = bill(FAST, ran[FAST], spent, spending, price)
    assert found["cpu_seconds_per_request"] == pytest.approx(0.006)
    assert (found["cpu_method"], found["requests"], found["rows"]) == (SHARED, 6000, 6400)
    assert found["per_million"]["usd"] == pytest.approx(0.006 / 2 * 0.0416 / 3600 * 1e6)
    assert found["per_million"]["price"] == {"usd_per_hour": 0.0416, "source": "--price"}
    assert found["energy"]["method"].startswith("modelled")
    whole = of_server(6000, spending, price)
    assert whole["per_million"]["usd"] == pytest.approx(0.0416 / 6000 * 1e6)  # an hour was paid for
    assert whole["cpu_use"] == pytest.approx(36 / 7200)
    assert bill(FAST, ran[FAST], spent, spending, None)["per_million"] is None
    assert bill(SLOW, Ran(), spent, spending, price)["per_million"] is None
    assert bill(SLOW, Ran(), spent, spending, price)["energy"]["method"] == "unavailable"
