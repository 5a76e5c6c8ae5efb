"""Training by distillation: it lowers the loss it names, keeps the best epoch, stops for reasons, and resumes where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import small_models
from lowbit.compress.evidence import Evidence
from lowbit.compress.quantize import quantize
from lowbit.errors import DataError, UsageError
from lowbit.graph.channel_sets import Carried
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.pipeline.recipes import static
from lowbit.recipe import QuantSpec
from lowbit.train.checkpoint import Epoch, Progress
from lowbit.train.distill import Distillation, hints, matching_factors
from lowbit.train.pool import Pool
from lowbit.train.qat import Settings, Trained, train
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Batch

QUICK = Settings(epochs=3, batch=16, weight_rate=0.5, scale_rate=1e-3, vary=False)
INPUT = "input.1"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small CNN in FP32, and with 4-bit weights."""
    folder = tmp_path_factory.mktemp("models")
    source = small_models.cnn(folder / "cnn.onnx")
    prepared = prepare(load_model(source), folder / "prepared.onnx")
    evidence = Evidence(prepared, lambda: [Batch(np.arange(16), {INPUT: small_models.images(16)}, None)])
    recipe = replace(static("minmax"), name="w4a8", weights=QuantSpec("int4", "per-channel", symmetric=True))
    return prepared, quantize(source, prepared, recipe, folder / "w4a8.onnx", evidence=evidence, target="openvino-cpu")


def pool(count: int = 160, **fields: object) -> Pool:
    return replace(Pool({INPUT: small_models.images(count)}), **fields)  # type: ignore[arg-type]


def trained(models: tuple[Path, Path], settings: Settings = QUICK, **options: object) -> tuple[Trained, Twin]:
    student = Twin(models[1])
    return train(student, Twin(models[0]), pool(), settings, **options), student  # type: ignore[arg-type]


def test_distillation_brings_the_student_nearer_to_its_teacher_on_samples_it_has_not_seen(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    found, student = trained(models, replace(QUICK, epochs=6))
    assert [epoch.number for epoch in found.history] == list(range(7))
    assert found.gain > 0.3
    assert found.best.held_out_loss == min(epoch.held_out_loss for epoch in found.history)
    assert found.reason == "All 6 epochs are done."
    write_back(student, models[1], tmp_path / "out.onnx")
    again = train(Twin(tmp_path / "out.onnx"), Twin(models[0]), pool(), replace(QUICK, epochs=1))
    assert again.history[0].held_out_loss == pytest.approx(found.best.held_out_loss, rel=0.05)  # what was trained is what was written


def test_training_that_only_harms_leaves_the_student_as_it_was(models: tuple[Path, Path]) -> None:
    found, student = trained(models, replace(QUICK, weight_rate=50.0, scale_rate=0.5, patience=2, epochs=9))
    assert found.best.number == 0
    assert found.reason == "2 epochs brought nothing better."
    assert found.gain == 0.0
    before = Twin(models[1]).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_best_epoch(models: tuple[Path, Path]) -> None:
    calls = 0

    def own(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], _: torch.Tensor | None) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        name = next(iter(teacher))
        return ((student[name] - teacher[name]) ** 2).mean() * (math.nan if calls > 12 else 1.0)

    found, student = trained(models, loss=own)
    assert found.reason == "The loss was no longer finite; the best epoch before is kept."
    assert [epoch.number for epoch in found.history] == [0, 1]
    assert all(bool(torch.isfinite(value).all()) for value in student.state_dict().values())


def test_time_that_is_over_stops_training(models: tuple[Path, Path]) -> None:
    found, _ = trained(models, replace(QUICK, epochs=1000, minutes=0.02, patience=1000))
    assert found.reason == "0.02 minutes are over."
    assert len(found.history) < 900


def test_a_killed_training_resumes_and_ends_as_if_it_had_not_been(models: tuple[Path, Path], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(models, checkpoint=tmp_path / "training.pt", on_epoch=kill)
    seen: list[int] = []
    resumed, student = trained(models, checkpoint=tmp_path / "training.pt", on_epoch=lambda epoch: seen.append(epoch.number))
    whole, expected = trained(models)
    assert seen == [0, 1, 2, 3]
    assert [epoch.held_out_loss for epoch in resumed.history] == pytest.approx([epoch.held_out_loss for epoch in whole.history], rel=1e-6)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value)


def test_a_checkpoint_of_another_training_is_not_resumed(models: tuple[Path, Path], tmp_path: Path) -> None:
    trained(models, replace(QUICK, epochs=1), checkpoint=tmp_path / "training.pt")
    assert Progress.load(tmp_path / "training.pt", "another key") is None
    found, _ = trained(models, replace(QUICK, epochs=2), checkpoint=tmp_path / "training.pt")
    assert len(found.history) == 3


def test_with_more_time_a_training_goes_on(models: tuple[Path, Path], tmp_path: Path) -> None:
    short, _ = trained(models, replace(QUICK, minutes=1e-9), checkpoint=tmp_path / "training.pt")
    assert short.history[-1].number <= 1
    seen: list[Epoch] = []
    found, _ = trained(models, replace(QUICK, minutes=5.0), checkpoint=tmp_path / "training.pt", on_epoch=seen.append)
    assert seen[: len(short.history)] == list(short.history)
    assert found.reason == "All 3 epochs are done."


def test_training_in_half_precision_learns_as_well(models: tuple[Path, Path]) -> None:
    """An FP32 student that was disturbed finds back; where the CPU has no bfloat16, this is float32."""
    losses = []
    for half in (False, True):
        student = Twin(models[0])
        with torch.no_grad():
            for index, name in enumerate(sorted(student.plan.trained)):
                weight = student.weight(name)
                weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
        found = train(student, Twin(models[0]), pool(), replace(QUICK, epochs=6, half=half))
        assert found.gain > 0.3
        assert all(value.dtype == torch.float32 for value in student.state_dict().values())
        losses.append(found.best.held_out_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


def test_of_a_wider_teacher_only_the_students_channels_are_compared() -> None:
    kept = {"t": Carried(np.array([0, 2]), -3, 4)}
    ours, theirs = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    scores = torch.randn(2, 5)
    loss = Distillation("classes", ("t",), kept=kept, weight=3.0)
    found = loss({"y": scores, "t": ours}, {"y": scores, "t": theirs}, ["y"])
    wanted = 3.0 * (ours - theirs[:, [0, 2]]).square().sum() / theirs[:, [0, 2]].square().sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_a_broken_checkpoint_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "training.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"checkpoint 'training\.pt' cannot be read"):
        trained(models, checkpoint=tmp_path / "training.pt")


def test_too_few_samples_are_refused(models: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="20 samples are too few to train on: 32 are the least"):
        train(Twin(models[1]), Twin(models[0]), pool(20), QUICK)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="minutes is 0"):
        Settings(minutes=0)
    with pytest.raises(UsageError, match="held_out is 1"):
        Settings(held_out=1)


@pytest.mark.parametrize("own", [False, True])
def test_labels_take_part_in_the_loss(models: tuple[Path, Path], own: bool) -> None:
    """A student told nothing but labels learns them, against its teacher, and is judged by them."""
    student, teacher = Twin(models[1]), Twin(models[0])
    labelled = pool(labels=np.zeros(160, np.int64))
    settings = replace(QUICK, epochs=8, label_share=1.0, weight_rate=0.2, held_out=0.2)
    train(student, teacher, labelled, settings, loss=to_first_class if own else None)
    name = next(iter(student.plan.outputs))
    with torch.no_grad():
        feeds = {INPUT: torch.from_numpy(small_models.images(32))}
        assert (student(feeds)[name].argmax(1) == 0).float().mean() > (teacher(feeds)[name].argmax(1) == 0).float().mean()


def to_first_class(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    assert labels is not None
    return torch.nn.functional.cross_entropy(student[next(iter(teacher))], labels)


def test_the_loss_of_scores_is_the_divergence_of_their_distributions() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (torch.from_numpy(rng.normal(size=(5, 4))) for _ in range(2))
    p, q = torch.softmax(theirs, 1), torch.softmax(ours, 1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert float(Distillation("classes").outputs({"y": ours}, {"y": theirs}, ["y"])) == pytest.approx(float(expected), rel=1e-6)
    values = float(Distillation("values").outputs({"y": ours}, {"y": theirs}, ["y"]))
    assert values == pytest.approx(float(((ours - theirs) ** 2).sum() / (theirs**2).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 6, 4), (3, 4)])
def test_hints_are_compared_up_to_a_factor_a_channel(shape: tuple[int, ...]) -> None:
    theirs = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    axis = 1 if len(shape) == 4 else len(shape) - 1
    scaling = torch.tensor([0.5, 2.0, 3.0, 4.0]).reshape([-1 if each == axis else 1 for each in range(len(shape))]).double()
    ours = theirs * scaling
    factors = matching_factors({"t": ours}, {"t": theirs}, ["t"])
    torch.testing.assert_close(factors["t"], 1 / scaling.reshape(-1))
    loss = Distillation("values", ("t",), factors)({"t": ours, "y": theirs}, {"t": theirs, "y": theirs}, ["y"])
    assert float(loss) == pytest.approx(0, abs=1e-12)


def test_hints_lie_inside_of_both_graphs(models: tuple[Path, Path]) -> None:
    student, teacher = Twin(models[1]), Twin(models[0])
    assert hints(student, teacher) == ("r",)  # the only place where a block ends
    assert "r" in teacher.tensors
    assert "r" in student.tensors


@pytest.mark.parametrize("make", [lambda: pool(64, images=True).epoch(16, 3, vary=True), lambda: pool(64).epoch(16, 3, vary=True)])
def test_an_epoch_follows_from_its_seed(make: Callable[[], object]) -> None:
    first, second = ([feeds[INPUT] for feeds, _ in make()] for _ in range(2))  # type: ignore[attr-defined]
    assert len(first) == 4
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_only_images_are_varied() -> None:
    plain = torch.cat([feeds[INPUT] for feeds, _ in pool(64).epoch(16, 3, vary=True)])
    source = torch.from_numpy(small_models.images(64))
    assert {tuple(row.flatten()[:8].tolist()) for row in plain} == {tuple(row.flatten()[:8].tolist()) for row in source}
    varied = torch.cat([feeds[INPUT] for feeds, _ in pool(64, images=True).epoch(16, 3, vary=True)])
    assert not torch.equal(varied, plain)
    assert varied.abs().max() <= source.abs().max()


def test_held_out_samples_are_not_trained_on() -> None:
    training, judging = pool(100).held_out(0.2, 0)
    rows = [{row.tobytes() for row in part.feeds[INPUT]} for part in (training, judging)]
    assert (len(rows[0]), len(rows[1])) == (80, 20)
    assert not rows[0] & rows[1]
