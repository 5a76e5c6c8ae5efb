"""One request to a language model, from what is asked to the pieces of its answers.

admit → choose the side of a rollout and the variant → tokens → the variant's desk → pieces of text → what watchers are told
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from lowbit.llm.engines.base import Emitted, Sampling
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.answer.answering import facts_of
from lowbit.serving.answer.routing import ASKED, route
from lowbit.serving.language import sides
from lowbit.serving.language.asking import TOO_LONG, Ask, BadField, check_length, most_bytes
from lowbit.serving.language.deploying import Speech, desk_of
from lowbit.serving.language.desk import Ticket
from lowbit.serving.language.measures import Finish, Spoken, outputs_of, request_of
from lowbit.serving.language.refusing import refuses
from lowbit.serving.language.rescoring import Scored
from lowbit.serving.language.writing import Writer
from lowbit.serving.protocol import aside
from lowbit.serving.protocol.refusals import Gone, NotServed, Refusal, TooLate
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run.deployment import FULL, Deployment, Variant
from lowbit.serving.watch import logs

if TYPE_CHECKING:
    from lowbit.serving.service import Service


MARKS = 1024
"""Characters that a template may put around a message."""
STANDS_IN = "fallback"
"""Reason of an answer by full precision in the place of a variant without an engine."""


@dataclass(frozen=True)
class Spelled:
    """A token of an answer, for those who ask for probabilities.

    Attributes:
        token: Its number.
        text: As it looks; cut where a stop string begins within it.
        logprob: None where the engine does not tell.
        start: Characters of the answer before it.
        end: Characters of the answer that are certain with it.
    """

    token: int
    text: str
    logprob: float | None
    start: int
    end: int


@dataclass(frozen=True)
class Piece:
    """More of one answer.

    Attributes:
        index: Which answer.
        text: What is new; may be empty.
        tokens: Whose text has gone out with it; empty where nobody asked.
        finish: Why it ended; None: more comes.
    """

    index: int
    text: str
    tokens: tuple[Spelled, ...] = ()
    finish: Finish | None = None


@dataclass
class Answer:
    """One answer under way.

    Attributes:
        index: Among the request's.
        prompt: Its tokens.
        writer: Of its text.
        finish: Why it ended; None as long as it goes on.
        logprobs: Of its tokens.
        held: Tokens whose text has not gone out.
        first_at: When its first token came, on the performance counter.
        last_at: And its last.
        gaps_s: Between them.
        tokens: All of them.
    """

    index: int
    prompt: Sequence[int]
    writer: Writer
    finish: Finish | None = None
    logprobs: list[float] = field(default_factory=list)
    held: list[Spelled] = field(default_factory=list)
    first_at: float | None = None
    last_at: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def came(self, now: float) -> None:
        """A token did."""
        if self.first_at is None:
            self.first_at = now
        else:
            self.gaps_s.append(now - self.last_at)
        self.last_at = now

    def released(self) -> tuple[Spelled, ...]:
        """Tokens whose text has gone out; at the end all, but nothing of a stop string."""
        given, stopped = self.writer.given, self.writer.stopped
        if stopped:
            found, self.held = [each for each in self.held if each.start < given], []
            return tuple(replace(each, text=each.text[: given - each.start]) for each in found)
        over = self.finish is not None
        out = [over or (each.start < given and each.end <= given) for each in self.held]
        found = [each for each, gone in zip(self.held, out, strict=True) if gone]
        self.held = [each for each, gone in zip(self.held, out, strict=True) if not gone]
        return tuple(found)


class Talk:
    """One request. `begin` it, go through its `pieces`, and `close` it whatever happens.

    Attributes:
        ask: What is asked.
        caller: Who asks.
        deployment: That answers; once it has begun.
        variant: Likewise.
        reason: Why that variant.
        answers: That are written.
    """

    deployment: Deployment
    variant: Variant
    reason: str
    answers: tuple[Answer, ...] = ()

    def __init__(self, service: Service, ask: Ask, caller: Caller) -> None:
        """Nothing is asked yet."""
        self.ask, self.caller = ask, caller
        self._service, self._stack = service, contextlib.ExitStack()
        self._start = perf_counter()
        self._tickets: tuple[Ticket, ...] = ()
        self._events: asyncio.Queue[tuple[int, Emitted | Refusal]] = asyncio.Queue()
        self._first: tuple[int, Emitted | Refusal] | None = None
        self._deadline = 0.0
        self._trial: sides.Sided | None = None
        self._told = False
        self._at: Deployment | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(len(each.prompt) for each in self.answers[:: self.ask.n])

    @property
    def answer_tokens(self) -> int:
        """Of all answers so far."""
        return sum(each.writer.tokens for each in self.answers)

    async def begin(self) -> None:
        """Waits for the first token, so that whatever refuses a request does so before anything is sent.

        Where a rollout's candidate fails so far, or refuses what the champion takes, the champion answers.

        Raises:
            Refusal: of the kind that fits.
        """
        now, settings = asyncio.get_running_loop().time(), self._service.settings
        waits = self.caller.deadline_s or math.inf
        self._deadline, first_by = now + min(waits, settings.language.answer_s), now + min(waits, settings.deadline_s)
        try:
            name, version = _named(self._service, self.ask.model)
            side = self._stack.enter_context(self._service.admitted(name, version, self.caller))
            trial = self._service.trial(name) if version is None else None
            self._trial = None if trial is None else sides.Sided(trial, side)
            if self._trial is None or not self._trial.trying:
                return await self._on(side, first_by)
            try:
                return await self._on(side, self._trial.patience(now, first_by))
            except Refusal as refusal:
                doubted = self._trial.doubts(refusal)
                if not doubted and not self._trial.covers(refusal):
                    raise
                seconds = self._seconds
                if not doubted:
                    self._service.refused(refusal, self.caller, side, seconds)
                self._let_go()
                place = self._trial.turn()
                self._stack.enter_context(self._service.admitted(name, None, self.caller, place=place))
                await self._on(place, first_by)  # where it refuses, too, the request is wrong, and that is all that is told
                if doubted:
                    self._trial.contradicts()
                    self._service.refused(refusal, self.caller, side, seconds)
        except Refusal as refusal:
            if self._trial is not None and not self._trial.trying:
                self._trial.blames(refusal)
            self._failed(refusal)
            raise

    async def _on(self, deployment: Deployment, first_by: float) -> None:
        """Asks one version, and waits for its first token."""
        with _foreseen():
            await self._asks(deployment, first_by)

    async def _asks(self, deployment: Deployment, first_by: float) -> None:
        self._at = self.deployment = deployment
        speech, policy = _speech(deployment), self._service.answers.policy.now
        way = route(policy, facts_of(deployment.name, InferRequest({}, parameters=self.ask.parameters), self.caller, policy.tenant_header))
        variant = deployment.variant(way.variant)
        if variant is None:
            known = ", ".join(f"{each.role} ({each.id})" for each in deployment.variants.values())
            raise NotServed(f"Model '{deployment.name}' has no variant {way.variant!r} loaded. Loaded: {known}.")
        self.variant, self.reason = self._living(deployment, variant, way.reason)
        variant = self.variant
        desk = desk_of(variant)
        room = min(speech.context, desk.context)
        check_length(self.ask, room, speech.words.longest)
        try:
            async with asyncio.timeout_at(first_by):
                prompts = await self._prompts(speech, room)
        except TimeoutError:
            raise TooLate("The prompt was not read in time.") from None
        for tokens in prompts:
            _check(tokens, desk.vocabulary, room, self.ask)
        self.answers = tuple(
            Answer(number, tokens, Writer(speech.words.decode, self.ask.stops))
            for number, tokens in enumerate(tokens for tokens in prompts for _ in range(self.ask.n))
        )
        events: asyncio.Queue[tuple[int, Emitted | Refusal]] = asyncio.Queue()
        self._events = events
        places: dict[int, int] = {}

        def sink(ticket: Ticket, what: Emitted | Refusal) -> None:
            events.put_nowait((places[ticket.number], what))

        try:
            self._tickets = desk.ask([(each.prompt, self._sampling(each, room, speech)) for each in self.answers], sink)
            places.update({ticket.number: index for index, ticket in enumerate(self._tickets)})
            self._first = await self._next(first_by, "There was no answer in time.")
            if isinstance(self._first[1], Refusal):
                raise self._first[1]
        except Refusal as refusal:
            refusal.variant = variant.id
            raise

    def _living(self, deployment: Deployment, variant: Variant, reason: str) -> tuple[Variant, str]:
        """Who answers, and why: full precision where the variant's engine is gone and nobody asked for just that variant.

        A rollout's candidate has nobody to stand in: it failed, and the champion answers.
        """
        full = deployment.variants.get(FULL)
        trying = self._trial is not None and self._trial.trying
        if desk_of(variant).alive or reason == ASKED or trying or full is None or not desk_of(full).alive:
            return variant, reason
        if self._trial is not None:
            self._trial.over = True  # it says nothing of the champion either
        return full, STANDS_IN

    async def _prompts(self, speech: Speech, room: int) -> list[Sequence[int]]:
        words, ask = speech.words, self.ask
        if ask.chat:
            size = sum(len(each["content"]) + 64 for each in ask.messages)  # a template goes through empty ones, too
            most = most_bytes(room, words.longest) + MARKS * len(ask.messages)
            return [await aside.by_size(4 * size, words.chat, ask.messages, self.deployment.name, most)]
        found: list[Sequence[int]] = []
        for prompt in ask.prompts:
            found.append(prompt if isinstance(prompt, tuple) else await aside.by_size(4 * len(prompt), words.encode, prompt))
        return found

    def _sampling(self, answer: Answer, room: int, speech: Speech) -> Sampling:
        ask, left = self.ask, room - len(answer.prompt)
        return Sampling(
            tokens=left if ask.tokens is None else min(ask.tokens, left),
            temperature=ask.temperature,
            top_p=ask.top_p,
            top_k=ask.top_k,
            seed=None if ask.seed is None else (ask.seed + answer.index % ask.n) % 2**32,
            eos=() if ask.ignore_eos else speech.words.eos,
        )

    async def _next(self, by: float, late: str) -> tuple[int, Emitted | Refusal]:
        try:
            async with asyncio.timeout_at(by):
                return await self._events.get()
        except TimeoutError:
            raise TooLate(late) from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """All answers, as they come.

        Raises:
            Refusal: one of them failed, or the deadline passed.
        """
        assert self._first is not None, "it has begun"
        try:
            waiting = len(self.answers)
            event: tuple[int, Emitted | Refusal] | None = self._first
            while waiting:
                index, what = event or await self._next(self._deadline, "The answer took too long.")
                event = None
                if isinstance(what, Refusal):
                    what.variant = self.variant.id
                    raise what
                answer = self.answers[index]
                if answer.finish is not None:
                    continue
                with _foreseen():
                    piece = self._piece(answer, what)
                waiting -= piece.finish is not None
                if piece.text or piece.tokens or piece.finish is not None:
                    yield piece
        except Refusal as refusal:
            if self._trial is not None:
                self._trial.blames(refusal)
            self._failed(refusal)
            raise
        self._ended()

    def _piece(self, answer: Answer, what: Emitted) -> Piece:
        writer, text = answer.writer, ""
        if what.logprob is not None and (what.token is not None or not answer.logprobs):
            answer.logprobs.append(what.logprob)  # of the end token where there is no other
        if what.token is not None:
            answer.came(perf_counter())
            start = writer.certain
            text = writer.push(what.token)
            answer.tokens.append(what.token)
            if self.ask.logprobs:
                words = _speech(self.deployment).words
                answer.held.append(Spelled(what.token, words.shown(what.token), what.logprob, start, writer.certain))
        if writer.stopped:
            answer.finish = "stop"
            desk_of(self.variant).drop(self._tickets[answer.index])
        elif what.finished is not None:
            text += writer.flush()
            answer.finish = "stop" if writer.stopped or what.finished == "stop" else "length"
        released = answer.released() if answer.held else ()
        return Piece(answer.index, text, released, answer.finish)

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _seconds(self) -> float:
        return perf_counter() - self._start

    def spoken(self) -> tuple[Spoken, ...]:
        """What is to be known of the answers that have begun."""
        settings = _speech(self.deployment).settings
        return tuple(
            Spoken(
                len(each.prompt),
                each.writer.tokens,
                each.finish or "length",
                math.fsum(each.logprobs) / len(each.logprobs) if each.logprobs else None,
                refuses(each.writer.text, settings.refusals),
                None if each.first_at is None else each.first_at - self._start,
                tuple(each.gaps_s),
            )
            for each in self.answers
        )

    def _ended(self) -> None:
        """All answers came: watchers are told."""
        if self._told:
            return
        self._told = True
        answers, seconds = self.spoken(), self._seconds
        ran = max((each.ran_s for each in self._tickets), default=0.0)
        together = max(len(answers), *(each.company for each in self._tickets))
        queued = max(each.queued_s for each in self._tickets)
        found = Answered(outputs_of(answers), self.variant, self.reason, together, queued, ran)
        request = request_of(answers)
        if self._trial is not None:
            with _watched("a rollout's count"):
                self._trial.answered(found, answers, seconds)
        for observer in self._service.observers:
            with _watched(type(observer).__name__):
                observer.answered(self.deployment, request, self.caller, found, seconds)
                observer.spoke(self.deployment, self.variant.id, answers)
        self._offer()

    def _offer(self) -> None:
        """Has some of the answers scored again, once nobody waits."""
        rescorer, trial = _speech(self.deployment).rescorer, self._trial
        if rescorer is None:
            return
        for each in self.answers:
            if not rescorer.drawn(None if trial is None else trial.share(rescorer.share)):
                continue
            if self.deployment.variant(FULL) is self.variant:
                if trial is not None and not self.ask.temperature:
                    trial.rescored(len(each.tokens), 0)  # it is full precision that answered
            else:
                rescorer.offer(each.prompt, each.tokens, partial(self._rescored, each))

    def _rescored(self, answer: Answer, found: Scored) -> None:
        if self._trial is not None and not self.ask.temperature:
            self._trial.rescored(found.tokens, found.tokens - found.agreed)
        own = -math.fsum(answer.logprobs) if len(answer.logprobs) == found.tokens else math.nan
        for observer in self._service.observers:
            with _watched(type(observer).__name__):
                observer.rescored(self.deployment, self.variant.id, found.tokens, own, found.nats)

    def _failed(self, refusal: Refusal) -> None:
        if not self._told:
            self._told = True
            self._service.refused(refusal, self.caller, self._at, self._seconds)

    def _let_go(self) -> None:
        for ticket in self._tickets:
            desk_of(self.variant).drop(ticket)
        self._tickets = ()

    def close(self) -> None:
        """Gives back whatever it holds: places in the engine, and its place in the server. Where it had not ended, the client went."""
        if not self._told:
            self._told = True
            if self._trial is not None:
                self._trial.left(self.spoken() if self.answers else (), self._seconds)
            self._service.refused(Gone("The client went away."), self.caller, self._at, self._seconds)
        self._let_go()
        self._stack.close()


@contextlib.contextmanager
def _foreseen() -> Iterator[None]:
    """What nobody foresaw is a refusal as well: it counts against who answers, and not as a client that went away."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        logs.failed("a request to a language model failed")
        raise Refusal("The server failed on this request.") from error


@contextlib.contextmanager
def _watched(observer: str) -> Iterator[None]:
    """Who watches must not cost anybody an answer."""
    try:
        yield
    except Exception:
        logs.failed("an observer failed", observer=observer)


def _named(service: Service, model: str) -> tuple[str, str | None]:
    """Name and version that a client means: "name", "name@version", or nothing where there is one language model alone.

    Raises:
        NotServed: there is no such model, or it is no language model.
        BadField: it has to say which.
    """
    served = [each.name for each in service.models.values() if each.language is not None]
    if not model:
        if len(served) != 1:
            raise BadField("model", f"Say which model. Served: {', '.join(served) or 'none'}.")
        return served[0], None
    name, at, version = model.partition("@")
    found = service.models.get(name)
    if found is None or found.language is None:
        kind = "is no language model" if found is not None else "is not served"
        raise NotServed(f"The model '{name[:100]}' {kind}. Served: {', '.join(served) or 'none'}.")
    return name, version if at else None


def _speech(deployment: Deployment) -> Speech:
    assert deployment.language is not None, "names were looked up among language models"
    return deployment.language


def _check(tokens: Sequence[int], vocabulary: int, room: int, ask: Ask) -> None:
    param = "messages" if ask.chat else "prompt"
    if not tokens:
        raise BadField(param, "The prompt has no tokens: this model cannot begin from nothing.")
    if len(tokens) >= room:  # first: it may be millions
        raise BadField(
            param,
            f"This model's maximum context length is {room:,} tokens, and the prompt has {len(tokens):,}: no room is left for an answer.",
            TOO_LONG,
        )
    if strange := next((each for each in tokens if not 0 <= each < vocabulary), None):
        raise BadField(param, f"Token {strange} is not in the vocabulary: it has {vocabulary:,} tokens, from 0.")
