"""Which recipes are tried on which engines. Pure.

A table of quantized weights is made once and written for every engine whose format holds it exactly; what an engine's own quantizer
makes is a candidate like the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowbit.errors import UsageError, unknown
from lowbit.llm.decoder import Decoder
from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe

BASELINE_ENGINE = "torch"
"""What everything is compared with: the source's own weights in exact arithmetic, as people run them before they look further."""

SOURCE_RECIPE = LanguageRecipe("f16", "none")

HEAD = Grid(8, 32)
"""Of the embedding and the head: every token reads the whole head, and every format holds this grid."""

INT8 = LanguageRecipe("int8", "rtn", Grid(8, 32), HEAD)
INT8_ROW = LanguageRecipe("int8-row", "rtn", Grid(8), Grid(8))
W8A8 = LanguageRecipe("w8a8-smooth", "rtn", Grid(8), Grid(8), "int8-token", smooth=0.5)
MIXED = LanguageRecipe("mixed-5", "gptq", Grid(4, 32), HEAD, options={"bits": 5.0})
"""Which layer gets which grid is found when it is made; the mean counts scales."""

MIXED_GRIDS = (Grid(4, 32), Grid(8, 32))
"""Grids that every engine has kernels for."""


def int4(decoder: Decoder, group: int, *, symmetric: bool = True, method: str = "gptq") -> LanguageRecipe:
    """INT4 in groups, named as the convention in lowbit.llm.recipe has it."""
    name = f"int4-{method}" + ("" if group == 32 else f"-g{group}") + ("" if symmetric else "-asym")
    return LanguageRecipe(name, method, Grid(4, group, symmetric), HEAD if decoder.width % 32 == 0 else Grid(8))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """One recipe on one engine: a candidate to be."""

    recipe: LanguageRecipe
    engine: str

    @property
    def id(self) -> str:
        return f"{self.recipe.name}@{self.engine}"


def divides(decoder: Decoder, group: int) -> bool:
    """Whether groups of that many weights fill every linear layer's rows."""
    return all(decoder.shape(role)[1] % group == 0 for role in decoder.roles)


def catalogue(decoder: Decoder) -> dict[str, LanguageRecipe]:
    """Every built-in recipe that this decoder's sizes allow, by name."""
    found = [SOURCE_RECIPE, INT8_ROW, W8A8]
    if divides(decoder, 32):
        found += [INT8, LanguageRecipe("int4", "rtn", Grid(4, 32), HEAD), LanguageRecipe("int4-hqq", "hqq", Grid(4, 32), HEAD)]
        found += [int4(decoder, 32), int4(decoder, 32, method="awq"), int4(decoder, 32, method="tuned"), MIXED]
        found += [LanguageRecipe(f"int{bits}-tuned", "tuned", Grid(bits, 32), HEAD) for bits in (3, 2)]
    for group in (64, 128):
        if divides(decoder, group):
            found += [int4(decoder, group), int4(decoder, group, symmetric=False)]
    if decoder.width % 256 == 0 and decoder.inner % 256 == 0:
        found += [LanguageRecipe("llamacpp-q4_k_m", "llamacpp", preset="Q4_K_M")]
    found += [
        LanguageRecipe(f"llamacpp-{preset.lower()}", "llamacpp", preset=preset) for preset in ("Q8_0", "Q4_0") if divides(decoder, 32)
    ]
    return {recipe.name: recipe for recipe in found}


DEFAULT = ("f16", "int8", "int8-row", "int4-gptq", "int4-gptq-g128", "llamacpp-q4_k_m")
"""Tried unless recipes are named; research bits never are."""


def plans(decoder: Decoder, engines: Sequence[str], asked: Iterable[str] = ()) -> list[Plan]:
    """What to try, cheapest first: 16 bit on every engine, then each recipe on each engine that takes it.

    Args:
        decoder: Whose sizes decide what is possible.
        engines: Installed here and asked for; the baseline's is added where it lacks.
        asked: Names of recipes; none means the default ones.

    Raises:
        UsageError: a recipe is not known, this decoder's sizes do not allow it, or none of these engines is tried with it.
    """
    known, asked = catalogue(decoder), tuple(asked)
    names = list(dict.fromkeys(asked)) or [name for name in DEFAULT if name in known]
    for name in names:
        if name not in known:
            raise unknown("recipe", name, known)
    recipes = [SOURCE_RECIPE, *(known[name] for name in names if name != SOURCE_RECIPE.name)]
    found = [Plan(SOURCE_RECIPE, BASELINE_ENGINE)]
    for recipe in recipes:
        # Activations in 8 bit a token are emulated by the baseline's engine alone, which is searched only where it is named.
        also = [BASELINE_ENGINE] if recipe.activations != "float" and BASELINE_ENGINE not in engines else []
        fits = [Plan(recipe, engine) for engine in (*engines, *also) if _takes(engine, recipe)]
        if not fits and recipe.name in asked:
            where = " or ".join(engines)
            raise UsageError(f"Recipe '{recipe.name}' is not tried on {where}.", "Give another recipe, or another --runtime.")
        found += [plan for plan in fits if plan != found[0]]
    if len(found) == 1 and not engines:
        raise UsageError("No engine for language models is installed.", "Install some: pip install 'lowbit[language]'.")
    return found


def _takes(engine: str, recipe: LanguageRecipe) -> bool:
    """Whether an engine is tried with a recipe at all; its writer has the last word."""
    if recipe.method == "llamacpp":
        return engine == "llamacpp"
    if recipe.activations != "float":
        return engine == BASELINE_ENGINE  # emulated there; other engines quantize activations by themselves
    if engine == "llamacpp":
        return recipe.name != INT8_ROW.name and (recipe.grid is None or recipe.grid.symmetric)
    return recipe.name != INT8.name or engine == "onnxruntime-genai"
