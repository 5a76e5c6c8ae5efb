"""What to do in which week: a baseline, quantizing after training, optimizing, and a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.cost.decide import Word


@dataclass(frozen=True)
class Week:
    """One step.

    Attributes:
        number: Of the week; 0 for what is done already.
        title: In a word or two.
        what: To do.
        ends: When it is finished.
        state: "done", "to do" or "not needed".
    """

    number: int
    title: str
    what: str
    ends: str
    state: str


STEPS = {
    "baseline": (
        "Baseline",
        "Accuracy, latency and cost of today's model on data and machines of production: lowbit validate, lowbit loadtest.",
        "The budget of accuracy and the latency target are written down.",
    ),
    "ptq": (
        "Quantize after training",
        "lowbit optimize with some hundred representative samples.",
        "A bundle with a verdict, on the machine it will run on.",
    ),
    "optimize": (
        "Optimize",
        "What the verdict asks for: mixed precision, lowbit qat, batching, a cache.",
        "Slices and the hardest tenth hold, too; a load test holds the target.",
    ),
    "rollout": (
        "Roll out",
        "lowbit serve behind a canary, full precision kept warm; then fewer or smaller instances.",
        "All traffic runs on it, and next month's bill is as computed here.",
    ),
}


def roadmap(bundle: str, word: Word) -> tuple[Week, ...]:
    """The weeks that are left.

    Args:
        bundle: Verdict of the bundle; empty without one.
        word: Whether it is worth it.
    """
    states = dict.fromkeys(STEPS, "to do")
    if bundle:
        states |= {"baseline": "done", "ptq": "done"}
    if bundle == "ship":
        states["optimize"] = "not needed"
    if word == "not worth it":
        states |= {name: "not needed" for name, state in states.items() if state == "to do" and (bundle or name != "baseline")}
    found, number = [], 0
    for name, step in STEPS.items():
        number += states[name] == "to do"
        found.append(Week(number if states[name] == "to do" else 0, *step, states[name]))
    return tuple(found)
