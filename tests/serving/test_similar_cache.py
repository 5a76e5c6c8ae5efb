"""Images that are nearly the same: seen as such, and never where that could hurt."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_case import tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Answered, Plan
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.cache import images, similar
from lowbit.serving.cache.cache import Cache
from lowbit.serving.cache.guard import MEMORY, Guard, at_least, at_most, upper_bound
from lowbit.serving.cache.images import Look, Pixels
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.cache.similar import CLOSE, LocalIndex, differing
from lowbit.serving.cache.store import Fits, Kept, Local, anything
from lowbit.types import Feeds, TensorInfo

PIXELS = Pixels("x", True, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def photo(seed: int, side: int = 96) -> np.ndarray:
    """Smooth blobs of colour with some texture, uint8 [side, side, 3]: like a photo, not like noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + rng.normal(0, 4, (side, side, 3)), 0, 255).astype(np.uint8)


def feeds(image: np.ndarray) -> Feeds:
    array = (image.astype(np.float32) / 255 - np.array(PIXELS.mean, np.float32)) / np.array(PIXELS.std, np.float32)
    return {"x": array.transpose(2, 0, 1)[None]}


def look(image: np.ndarray) -> Look:
    found = PIXELS.look(feeds(image))
    assert found is not None
    return found


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(stream))


# Looks ----------------------------------------------------------------------------------------------------------------------


def test_block_means_are_grey_levels_whatever_the_preprocessing() -> None:
    image = photo(1)
    wanted = image.astype(float).reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(look(image).thumb, wanted, atol=0.01)
    last = Pixels("x", False, 1 / 255, PIXELS.mean, PIXELS.std).look({"x": feeds(image)["x"].transpose(0, 2, 3, 1)})
    assert last is not None
    np.testing.assert_allclose(last.thumb, wanted, atol=0.01)
    np.testing.assert_array_equal(last.bits, look(image).bits)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_means_of_blocks_that_do_not_divide(height: int, width: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    image = np.random.default_rng(height).random((height, width, 2)).astype(np.float32)
    found = images.means(image, rows, columns)
    down, across = np.round(np.linspace(0, height, rows + 1)).astype(int), np.round(np.linspace(0, width, columns + 1)).astype(int)
    for row in range(rows):
        for column in range(columns):
            part = image[down[row] : down[row + 1], across[column] : across[column + 1]]
            np.testing.assert_allclose(found[row, column], part.mean(axis=(0, 1)), rtol=1e-4)


def test_copies_are_close_and_edits_are_not() -> None:
    for seed in range(20):
        image = photo(seed)
        own = look(image)
        for copy in (encoded(image, 90), np.clip(image.astype(int) + 2, 0, 255).astype(np.uint8)):
            other = look(copy)
            assert own.distance(other) <= CLOSE
            assert int(differing(own.bits[None], other.bits)[0]) <= similar.NEAR
        edited = image.copy()
        edited[40:48, 30:38] = 255 - edited[40:48, 30:38]
        if np.abs(edited[40:48, 30:38].astype(int) - image[40:48, 30:38]).mean() > 2 * CLOSE:
            assert own.distance(look(edited)) > CLOSE
        assert own.distance(look(photo(seed + 100))) > CLOSE


def test_small_images_must_have_the_same_detail() -> None:
    """Resized and back, an image of 32 pixels has lost what its class hangs on, though its blocks are the same."""
    small = photo(5, 32)
    rng = np.random.default_rng(0)
    sharp = np.clip(small.astype(int) + np.where(np.indices((32, 32)).sum(axis=0) % 2, 6, -6)[..., None], 0, 255).astype(np.uint8)
    assert np.abs(look(small).thumb - look(sharp).thumb).max() < CLOSE  # blocks of 2 x 2 pixels see no checkerboard
    assert look(small).distance(look(sharp)) == float("inf")
    noisy = np.clip(small.astype(int) + rng.integers(-1, 2, small.shape), 0, 255).astype(np.uint8)
    assert look(small).distance(look(noisy)) <= 2
    large = photo(5, 128)
    assert look(large).detail == 0


def test_what_is_no_single_image_is_not_looked_at() -> None:
    one = feeds(photo(0))["x"]
    assert PIXELS.look({"x": np.concatenate([one, one])}) is None
    assert PIXELS.look({"x": np.full_like(one, np.nan)}) is None
    assert PIXELS.look({"x": one[:, :, :12, :12]}) is None
    assert look(photo(0)).distance(look(photo(0, 48))) == float("inf")


def test_a_bundle_says_how_its_pixels_are_read(tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    found = images.pixels_of(bundle.preprocess, (TensorInfo("x", (None, 3, 8, 8), "float32"),))
    assert found == Pixels("x", True, 1 / 255)
    assert images.pixels_of(bundle.preprocess, (TensorInfo("x", (None, 8), "float32"),)) is None
    steps = bundle.folder / "preprocess.yaml"
    steps.write_text(steps.read_text().replace("kind: image", "kind: array"))
    assert images.pixels_of(bundle.preprocess, (TensorInfo("x", (None, 3, 8, 8), "float32"),)) is None


def test_bits_are_counted_with_and_without_numpys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, (50, 4), np.uint64)
    wanted = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(row, bits[3], strict=True)) for row in bits]
    assert differing(bits, bits[3]).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count")
    assert differing(bits, bits[3]).tolist() == wanted


# The index -------------------------------------------------------------------------------------------------------------------


def test_the_closest_within_its_namespace_and_time_is_found() -> None:
    async def main() -> None:
        now = 0.0
        index = LocalIndex(1 << 24, 10.0, clock=lambda: now)
        image = photo(3)
        nearer, farther = look(np.clip(image.astype(int) + 1, 0, 255)), look(np.clip(image.astype(int) + 4, 0, 255))
        await index.put(b"s", farther, Kept({}, {"n": 4}))
        await index.put(b"s", nearer, Kept({}, {"n": 1}))
        await index.put(b"t", look(image), Kept({}, {"n": 0}))
        found = await index.near(b"s", look(image))
        assert found is not None
        assert found.about == {"n": 1}
        assert await index.near(b"u", look(image)) is None
        assert await index.near(b"s", look(photo(4))) is None
        now = 10.0
        assert await index.near(b"s", look(image)) is None
        assert (len(index), index.nbytes) == (0, 0)

    asyncio.run(main())


def test_the_index_stays_within_its_bounds_and_forgets_the_oldest() -> None:
    async def main() -> None:
        index = LocalIndex(1 << 30, 1e9, most=4)
        for seed in range(7):
            await index.put(b"s", look(photo(seed)), Kept({}, {"n": seed}))
        assert len(index) == 4
        assert [(await index.near(b"s", look(photo(seed)))) is not None for seed in range(7)] == [False] * 3 + [True] * 4
        one = index.nbytes // 4
        small = LocalIndex(2 * one + 10, 1e9)
        for seed in range(5):
            await small.put(b"s", look(photo(seed)), Kept({}))
            assert small.nbytes <= 2 * one + 10
        assert len(small) == 2

    asyncio.run(main())


# The guard -------------------------------------------------------------------------------------------------------------------


def summed(found: int, n: int, share: float) -> float:
    return sum(math.comb(n, number) * share**number * (1 - share) ** (n - number) for number in range(found + 1))


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.001, 0.999))
def test_tails_are_those_of_the_binomial_distribution(found: int, more: int, share: float) -> None:
    n = found + more
    assert at_most(found, n, share) == pytest.approx(summed(found, n, share), rel=1e-9, abs=1e-300)
    assert at_least(found, n, share) == pytest.approx(summed(n - found, n, 1 - share), rel=1e-9, abs=1e-300)


def test_tails_and_bounds_of_many() -> None:
    assert at_most(0, 598, 0.005) == pytest.approx(0.995**598, rel=1e-9)
    assert at_most(10_000, 20_000, 0.005) == 1
    assert at_least(10_000, 20_000, 0.005) == 0
    assert at_least(10, 20_000, 0.005) + at_most(9, 20_000, 0.005) == pytest.approx(1)
    assert upper_bound(0, 598) == pytest.approx(1 - 0.05 ** (1 / 598), abs=1e-12)  # no fault: the rule of three, exactly
    assert upper_bound(0, 0) == upper_bound(3, 3) == 1
    assert upper_bound(1, 100, 0.025) == pytest.approx(0.0545, abs=1e-4)  # published


def test_hits_are_all_worked_out_until_they_are_proved() -> None:
    guard = Guard(0.005, 0.02, seed=1)
    steps = 0
    while guard.state == "proving":
        assert guard.checks()
        guard.told(right=True)
        steps += 1
    assert steps == 736  # the least n for which 0.995^n is at most half of 5 %
    assert guard.upper < 0.005
    assert abs(sum(guard.checks() for _ in range(20_000)) / 20_000 - 0.02) < 0.005
    same = [Guard(0.005, 0.5, seed=3, proved=True) for _ in range(2)]
    assert [same[0].checks() for _ in range(50)] == [same[1].checks() for _ in range(50)]


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, float("nan")])
def test_a_budget_that_nothing_can_show_is_an_error(budget: float) -> None:
    with pytest.raises(UsageError, match="wrong answers"):
        Cache.of(CacheSettings(1 << 20, similar=True, similar_budget=budget))


def shares_on(rate: float, seeds: range, checks: int = 2400, budget: float = 0.05) -> float:
    """Share of guards that were ever on, with hits that are wrong at a rate."""
    ever = 0
    for seed in seeds:
        guard, wrong = Guard(budget, 1.0), np.random.default_rng(seed).random(checks) < rate
        for each in wrong:
            guard.told(right=not each)
            if guard.state != "proving":
                break
        ever += guard.state == "on"
    return ever / len(seeds)


def test_a_rate_at_the_budget_is_almost_never_let_on_however_long_it_is_looked_at() -> None:
    """Five looks each: whoever looked after every check with 95 % confidence would let a third of them on."""
    assert shares_on(0.05, range(1000)) <= 0.05
    assert shares_on(0.01, range(100)) >= 0.95


def test_it_switches_itself_off_above_the_budget_and_goes_back_to_proving_near_it() -> None:
    guard = Guard(0.005, 0.02)
    guard.told(right=False)
    assert guard.state == "proving"  # one fault in one is nothing that the budget rules out: 0.5 %
    guard.told(right=False)
    assert guard.state == "off"
    for _ in range(2000):  # what is under way may still be told
        guard.told(right=True)
    assert guard.state == "off"
    doubtful = Guard(0.005, 0.02)
    for _ in range(736):
        doubtful.told(right=True)
    assert doubtful.state == "on"
    doubtful.told(right=False)
    assert doubtful.state == "proving"
    for _ in range(735):
        assert doubtful.checks()
        doubtful.told(right=True)
    assert doubtful.state == "on"  # the second look: one of 1,472 is less than half of the 5 % that are left
    for _ in range(30):
        doubtful.told(right=False)
    assert doubtful.state == "off"


def test_few_faults_far_below_the_budget_do_not_stop_it() -> None:
    guard = Guard(0.005, 0.02)
    for number in range(10_000):
        guard.told(right=number % 2000 != 1000)
    assert guard.state == "on"


def test_old_checks_count_less() -> None:
    guard = Guard(0.005, 0.02)
    for _ in range(MEMORY):
        guard.told(right=True)
    assert guard.checked == MEMORY / 2


# All together ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Model:
    """Says a class by the mean brightness, and counts how often it was asked."""

    plan: Plan
    ran: int = 0
    margin: float = 8.0
    classes: tuple[int, int] = (0, 1)

    async def __call__(self, image: np.ndarray) -> Answered:
        self.ran += 1
        logits = np.zeros((1, 3), np.float32)
        logits[0, self.classes[int(image.mean() > 127)]] = self.margin
        return Answered({"y": logits}, self.plan.variant)


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    from lowbit.serving.run import deployment

    made = deployment.load(tiny_bundle(tmp_path / "tiny"))
    yield Plan(made.variants["chosen"], None, ClassReader("y", False), "margin", 0.0, b"space", PIXELS)
    made.close()


def cache(*, proved: bool) -> Cache:
    return Cache(Local(1 << 20, 1e9), LocalIndex(1 << 24, 1e9), lambda: Guard(0.005, 0.0, proved=proved))


def asking(made: Cache, model: Model, *given: tuple[np.ndarray, bool]) -> list[Answered]:
    async def main() -> list[Answered]:
        deadline: float = asyncio.get_running_loop().time() + 5
        found = []
        for image, critical in given:
            found.append(await made.answered(model.plan, feeds(image), critical, lambda image=image: model(image), deadline))  # type: ignore[misc]
        return found

    return asyncio.run(main())


def words(found: list[Answered]) -> list[str]:
    return [each.cache for each in found]


def test_a_copy_is_answered_without_a_run(plan: Plan) -> None:
    model, made, image = Model(plan), cache(proved=True), photo(1)
    found = asking(made, model, (image, False), (encoded(image, 95), False), (image, False), (photo(2), False))
    assert words(found) == ["miss", "similar", "exact", "miss"]
    assert model.ran == 2
    np.testing.assert_array_equal(found[0].outputs["y"], found[1].outputs["y"])
    assert made.facts()["saved_rows"] == 2
    assert made.facts()["similar_on"] == 1


def test_critical_requests_never_get_another_images_answer(plan: Plan) -> None:
    model, made, image = Model(plan), cache(proved=True), photo(1)
    copy = encoded(image, 95)
    found = asking(made, model, (image, False), (copy, True), (copy, True), (copy, False))
    assert words(found) == ["miss", "miss", "exact", "exact"]
    other = encoded(image, 92)
    assert words(asking(made, model, (other, False), (other, True))) == ["similar", "miss"]  # a similar answer is never kept as exact


def test_critical_requests_do_not_join_one_that_is_answered_as_similar(plan: Plan) -> None:
    class Slow(LocalIndex):
        async def near(self, space: bytes, look: Look, fits: Fits = anything) -> Kept | None:
            await asyncio.sleep(0.01)  # as one in another process would
            return await super().near(space, look, fits)

    model, made, image = Model(plan), cache(proved=True), photo(1)
    made.similar = Slow(1 << 24, 1e9)
    copy = encoded(image, 95)

    async def main() -> list[str]:
        deadline = asyncio.get_running_loop().time() + 5
        await made.answered(plan, feeds(image), False, lambda: model(image), deadline)
        both = (made.answered(plan, feeds(copy), critical, lambda: model(copy), deadline) for critical in (False, True))
        return [found.cache for found in await asyncio.gather(*both)]

    assert asyncio.run(main()) == ["similar", "miss"]


def test_answers_that_were_close_are_not_kept_for_others(plan: Plan) -> None:
    model, made, image = Model(plan, margin=0.2), cache(proved=True), photo(1)
    assert words(asking(made, model, (image, False), (encoded(image, 95), False), (image, False))) == ["miss", "miss", "exact"]


def test_until_they_are_proved_similar_answers_are_worked_out(plan: Plan) -> None:
    model, made, image = Model(plan), cache(proved=False), photo(1)
    assert words(asking(made, model, (image, False), (encoded(image, 95), False))) == ["miss", "shadow"]
    guard = made.guard(plan)
    assert (model.ran, guard.checked, guard.wrong) == (2, 1, 0)


def test_wrong_ones_switch_it_off(plan: Plan) -> None:
    model, made, image = Model(plan), cache(proved=False), photo(1)
    asking(made, model, (image, False))
    made.guard(plan).told(right=False)
    model.classes = (2, 2)
    found = asking(made, model, (encoded(image, 95), False), (encoded(image, 94), False))
    assert words(found) == ["shadow", "miss"]
    assert found[0].outputs["y"].argmax() == 2  # what was worked out is what is answered
    facts: dict[str, Any] = made.facts()
    assert (facts["similar_off"], facts["similar_wrong"]) == (1, 2)


def test_what_one_model_got_right_says_nothing_of_another(plan: Plan) -> None:
    """Each namespace proves itself, and one that is off leaves the others alone; metrics tell the worst."""
    other = dataclasses.replace(plan, space=b"another")
    made, image = cache(proved=False), photo(1)
    good, bad = Model(plan), Model(other)
    while made.guard(plan).state == "proving":
        made.guard(plan).told(right=True)
    assert made.facts()["similar_on"] == 1
    for _ in range(3):
        made.guard(other).told(right=False)
    for model in (good, bad):
        asking(made, model, (image, False))
    copy = encoded(image, 95)
    assert words([*asking(made, good, (copy, False)), *asking(made, bad, (copy, False))]) == ["similar", "miss"]
    facts = made.facts()
    assert (facts["similar_on"], facts["similar_off"], facts["similar_wrong"]) == (0, 1, 3)
    assert facts["similar_wrong_upper"] > 0.5
    made.only({plan.similar_space})
    assert made.facts()["similar_on"] == 1
