"""A request in a running rollout: which side it is on, and what is counted of it.

A latency counts per token, the whole answer's time over its tokens (normalized latency, Yu et al., Orca, OSDI 2022): answers are of
different lengths, and those of a side that talks more must not look slow. The wait for the first token is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowbit.serving.answer.answered import Answered
from lowbit.serving.fleet.counting import NOT_A_NUMBER
from lowbit.serving.fleet.shadowing import drawn
from lowbit.serving.fleet.trial import ALONE, FAULTS, Trial
from lowbit.serving.language.desk import Crowded
from lowbit.serving.language.measures import Spoken
from lowbit.serving.protocol.refusals import NotServed, Refusal
from lowbit.serving.run.deployment import Deployment


@dataclass
class Sided:
    """One request's place in a rollout.

    Attributes:
        trial: The rollout's step.
        side: Who answers it.
        over: Whether it says nothing of either side any more: the champion answers in the candidate's place.
    """

    trial: Trial
    side: Deployment
    over: bool = False

    @property
    def trying(self) -> bool:
        """Whether the candidate answers it."""
        return self.side is self.trial.canary

    def patience(self, now: float, by: float) -> float:
        """When the champion is asked in the candidate's place."""
        return now + ALONE * (by - now)

    def covers(self, refusal: Refusal) -> bool:
        """Counts the candidate's failure before its first token; True where the champion can answer instead."""
        if refusal.status < FAULTS and not isinstance(refusal, NotServed | Crowded):
            return False
        if not isinstance(refusal, NotServed):
            self.trial.counts.canary_failed(refusal.message, ran=refusal.status == FAULTS)
        return True

    def doubts(self, refusal: Refusal) -> bool:
        """Whether the candidate says that the request is wrong. It may be alone in that (a shorter context, no chat template): then the
        request was right, and the champion, which is asked, too, answers it."""
        return refusal.status < FAULTS and not isinstance(refusal, NotServed | Crowded)

    def contradicts(self) -> None:
        """Counts a request that the candidate refused as wrong and the champion answers: it failed, though nothing ran."""
        self.trial.counts.canary_failed("", ran=False)

    def turn(self) -> Deployment:
        """The champion, which answers from now on."""
        self.side, self.over = self.trial.champion, True
        return self.side

    def blames(self, refusal: Refusal) -> None:
        """Counts a failure behind the first token, or the champion's."""
        if self.over or (refusal.status < FAULTS and not isinstance(refusal, Crowded)):
            return
        if self.trying:
            self.trial.counts.canary_failed(refusal.message, ran=refusal.status == FAULTS)
        else:
            self.trial.counts.baseline.failed()
            self.trial.counts.changed = True

    def answered(self, found: Answered, answers: Sequence[Spoken], seconds: float) -> None:
        """Counts answers that came whole."""
        if self.over:
            return
        tokens = max((each.tokens for each in answers), default=0)
        each_s = seconds / max(1, tokens)
        found = replace(found, ran_s=found.ran_s / max(1, tokens))  # cost a token, as the time
        if not self.trying:
            self.trial.counts.baseline.answered(found, each_s, len(answers))
        elif any(each.logprob is not None and math.isnan(each.logprob) for each in answers):
            self.trial.counts.canary_failed("", ran=False)
            self.trial.counts.stop(NOT_A_NUMBER)
        else:
            self.trial.counts.canary_answered(found, each_s, len(answers))
        self.trial.counts.changed = True

    def share(self, usual: float) -> float:
        """Of the answers that are scored again: both arms as often, so the smaller one has more of its own."""
        return usual if self.over else max(usual, drawn(self.trial, self.side))

    def rescored(self, tokens: int, disagreed: int) -> None:
        """A greedy answer was scored by the 16-bit model, which would have chosen so many other tokens."""
        if not self.over:
            self.trial.counts.shadowed(self.side is self.trial.champion, tokens, disagreed)

    def left(self, answers: Sequence[Spoken], seconds: float) -> None:
        """A client went before the end: with tokens it saw how quick they were, without any it saw how slow."""
        if self.over:
            return
        arm = self.trial.counts.canary if self.trying else self.trial.counts.baseline
        arm.left(seconds / max(1, max((each.tokens for each in answers), default=0)))
        self.trial.counts.changed = True
