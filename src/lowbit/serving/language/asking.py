"""What a client asks of a language model: OpenAI's requests, read strictly. Pure.

What is known and not offered is refused with what to use instead, and only where it asks for something: clients send many defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbit.serving.protocol.refusals import Malformed

STOPS, STOP_LENGTH = 16, 512
"""Stop strings that a request may have, and characters of each."""
TOO_LONG = "context_length_exceeded"
"""OpenAI's word for a prompt that leaves no room."""
SPARE, FEWEST_BYTES = 4, 1 << 16
"""A tokenizer may drop some of a text before it cuts it (spaces, wide letters): so many times what fits is read, and always so much."""
MOST_ANSWERS = 128
COMPLETION_TOKENS = 16
"""Of a completion that says no number, as OpenAI's has it; a chat may fill the context."""
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "tool_choice")
"""Taken, and not looked at (`user` and `safety_identifier` draw sides of rollouts)."""
_COMMON = (
    "model",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "n",
    "ignore_eos",
    "variant",
    "critical",
    *IGNORED,
)
COMPLETION = ("prompt", "max_tokens", "logprobs", "best_of", "echo", "suffix", *_COMMON)
CHAT = ("messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "modalities", *_COMMON)
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "echo": ((False,), "The prompt is not given back: put it before the answer yourself."),
    "suffix": (("",), "Text behind the answer is not taken into account: put it into the prompt."),
    "logit_bias": (({},), "Single tokens cannot be made likelier or less likely here."),
    "presence_penalty": ((0, 0.0), "Penalties are not offered; a temperature between 0 and 1 is."),
    "frequency_penalty": ((0, 0.0), "Penalties are not offered; a temperature between 0 and 1 is."),
    "tools": (([],), "Tools are not offered."),
    "functions": (([],), "Functions are not offered."),
    "function_call": (("none",), "Functions are not offered."),
    "audio": ((), "Only text is offered."),
    "prediction": ((), "Predicted outputs are not offered."),
    "web_search_options": ((), "Searching is not offered."),
    "reasoning_effort": ((), "The effort of a model's thinking cannot be chosen here."),
    "verbosity": ((), "Say in the prompt how long the answer should be."),
}
"""Field -> values that ask for nothing, and what is said to others."""


class BadField(Malformed):
    """One field of a request is wrong.

    Attributes:
        param: Its name.
        reason: OpenAI's word for it; None where there is none.
    """

    def __init__(self, param: str, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.param, self.reason = param, reason


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        chat: Whether it came as a chat.
        model: As the client named it; "" where it names none.
        prompts: Each a text or tokens; of a chat none.
        messages: Of a chat.
        tokens: Most that each answer may have; None: what the context leaves.
        n: Answers to each prompt.
        temperature: 0 takes the likeliest.
        top_p: As `engines.base.Sampling`.
        top_k: Likewise.
        seed: None: other draws each time.
        stops: None of them empty.
        ignore_eos: Answers go on behind end tokens.
        logprobs: Whether tokens' probabilities are wanted.
        stream: Whether pieces are wanted as they come.
        usage: Whether a stream ends with its usage.
        session: What shares are drawn by, where no header says; "" for nothing.
        parameters: That steer routing: "variant", "critical".
    """

    chat: bool
    model: str
    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    stream: bool = False
    usage: bool = False
    session: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        """That are wanted."""
        return self.n * max(1, len(self.prompts))


def completion(document: object) -> Ask:
    """Reads what came to /v1/completions.

    Raises:
        BadField: a field is unknown, of the wrong kind, or asks for what is not offered.
    """
    raw = _checked(document, COMPLETION)
    n = _whole(raw, "n", 1, MOST_ANSWERS) or 1
    if (best := _whole(raw, "best_of", 1, MOST_ANSWERS)) is not None and best != n:
        raise BadField("best_of", "The best of several answers is not looked for: leave best_of out, or give n.")
    prompts = _prompts(raw.get("prompt"))
    told = _whole(raw, "logprobs", 0, 5)
    if told is not None and told > 1:
        raise BadField("logprobs", "Only the answer's own tokens have their probability told: give 0 or 1.")
    tokens = _whole(raw, "max_tokens", 1)
    return _common(raw, False, prompts=prompts, tokens=COMPLETION_TOKENS if tokens is None else tokens, n=n, logprobs=told is not None)


def chat(document: object) -> Ask:
    """Reads what came to /v1/chat/completions.

    Raises:
        BadField: as `completion`.
    """
    raw = _checked(document, CHAT)
    kind = raw.get("response_format")
    if kind is not None and kind != {"type": "text"}:
        raise BadField("response_format", "Answers are text: JSON can be asked for in the messages, and is not enforced.")
    if raw.get("modalities") not in (None, ["text"]):
        raise BadField("modalities", "Only text is offered.")
    if _whole(raw, "top_logprobs", 0, 20):
        raise BadField("top_logprobs", "Only the answer's own tokens have their probability told: leave top_logprobs out, or give 0.")
    older, newer = _whole(raw, "max_tokens", 1), _whole(raw, "max_completion_tokens", 1)
    tokens = older if newer is None else newer
    messages = _messages(raw.get("messages"))
    return _common(raw, True, messages=messages, tokens=tokens, n=_whole(raw, "n", 1, MOST_ANSWERS) or 1, logprobs=_flag(raw, "logprobs"))


def _common(raw: Mapping[str, Any], chat: bool, **own: Any) -> Ask:
    options = raw.get("stream_options")
    stream = _flag(raw, "stream")
    if options is not None:
        if not stream:
            raise BadField("stream_options", "stream_options are for streams: give stream: true, or leave them out.")
        if not isinstance(options, Mapping) or options.keys() - {"include_usage", "include_obfuscation"}:
            raise BadField("stream_options", "stream_options know include_usage alone.")
    ask = Ask(
        chat,
        _word(raw, "model"),
        temperature=_number(raw, "temperature", 1.0, 0.0, 2.0),
        top_p=_top_p(raw),
        top_k=_whole(raw, "top_k", 0) or 0,
        seed=_seed(raw),
        stops=_stops(raw.get("stop")),
        ignore_eos=_flag(raw, "ignore_eos"),
        stream=stream,
        usage=options is not None and _flag(options, "include_usage"),
        session=_word(raw, "safety_identifier") or _word(raw, "user"),
        parameters={name: raw[name] for name in ("variant", "critical") if raw.get(name) is not None},
        **own,
    )
    if ask.answers > MOST_ANSWERS:
        raise BadField("n", f"{ask.answers} answers are asked for in one request; {MOST_ANSWERS} are allowed.")
    return ask


def _checked(document: object, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise Malformed("The body must be a JSON object.")
    for name, value in document.items():
        if name in REFUSED:
            nothing, why = REFUSED[name]
            if value is not None and not any(value == each and type(value) is type(each) for each in nothing):
                raise BadField(name, why, "unsupported_parameter")
        elif name not in known:
            raise BadField(name[:60], f"Unrecognized request argument supplied: {name[:60]}.", "unknown_parameter")
    return document


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """A text, tokens, or several of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return tuple(value)
        if _tokens(value):
            return (tuple(value),)
        if all(isinstance(each, list) and each and _tokens(each) for each in value):
            return tuple(tuple(each) for each in value)
    raise BadField("prompt", "A prompt is a text, a list of token ids, or a list of several of one of them.")


def _tokens(value: Sequence[object]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in value)


def _messages(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise BadField("messages", 'Messages are a list: [{"role": "user", "content": "..."}].')
    return tuple(_message(number, each) for number, each in enumerate(value))


def _message(number: int, value: object) -> Mapping[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(value, dict) or not isinstance(role := value.get("role"), str) or not role or len(role) > 40:
        raise BadField(where, f"{where} needs a role, such as user, and content.")
    if value.get("tool_calls") or value.get("function_call"):
        raise BadField(where, f"{where} calls tools, which are not offered.")
    content = value.get("content")
    if isinstance(content, list):
        parts = [each.get("text") if isinstance(each, dict) and each.get("type") == "text" else None for each in content]
        if not parts or not all(isinstance(each, str) for each in parts):
            raise BadField(where, f"{where} has content of another kind than text; only text is offered.")
        content = "".join(str(each) for each in parts)
    if not isinstance(content, str):
        raise BadField(where, f"{where} needs content: a text.")
    name = value.get("name")
    return {"role": role, "content": content, **({"name": name} if isinstance(name, str) else {})}


def _stops(value: object) -> tuple[str, ...]:
    found = [] if value is None else value if isinstance(value, list) else [value]
    if len(found) > STOPS or not all(isinstance(each, str) and 0 < len(each) <= STOP_LENGTH for each in found):
        raise BadField("stop", f"stop is a text, or a list of at most {STOPS}, each of 1 to {STOP_LENGTH} characters.")
    return tuple(dict.fromkeys(str(each) for each in found))


def _whole(raw: Mapping[str, Any], name: str, least: int, most: int = 2**31 - 1) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        span = f"from {least} to {most}" if most < 2**31 - 1 else f"of at least {least}"
        raise BadField(name, f"{name} must be a whole number {span}.")
    return value


def _seed(raw: Mapping[str, Any]) -> int | None:
    value = raw.get("seed")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise BadField("seed", "seed must be a whole number of 64 bits.")
    return value % 2**32  # what every engine takes


def _number(raw: Mapping[str, Any], name: str, usual: float, least: float, most: float) -> float:
    value = raw.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise BadField(name, f"{name} must be from {least:g} to {most:g}.")
    return float(value)


def _top_p(raw: Mapping[str, Any]) -> float:
    found = _number(raw, "top_p", 1.0, 0.0, 1.0)
    if found <= 0:
        raise BadField("top_p", "top_p must be above 0, and at most 1.")
    return found


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadField(name, f"{name} must be true or false.")
    return bool(value)


def _word(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 512):
        raise BadField(name, f"{name} must be a text.")
    return value or ""


def most_bytes(room: int, longest: int) -> int:
    """Bytes of text that may be read for a prompt: more cannot fit, or only just.

    Args:
        room: Tokens that the prompt and its answer may have together.
        longest: Bytes of the tokenizer's longest token.
    """
    return max(FEWEST_BYTES, SPARE * room * longest)


def check_length(ask: Ask, room: int, longest: int) -> None:
    """Refuses, before a thread is busy with it, a text that is too long whatever its tokens turn out to be.

    Args:
        ask: What is asked.
        room, longest: As `most_bytes`.

    Raises:
        BadField: a prompt, or a chat's messages together, have more bytes than any prompt that fits; or there are too many messages.
    """
    most, param = most_bytes(room, longest), "messages" if ask.chat else "prompt"
    if len(ask.messages) > SPARE * room:
        raise BadField(param, f"The chat has {len(ask.messages):,} messages, and the model a context of {room:,} tokens.", TOO_LONG)
    texts = [each for each in ask.prompts if isinstance(each, str)]
    sizes = [sum(_bytes(each["content"]) for each in ask.messages)] if ask.chat else [_bytes(each) for each in texts]
    if (size := max(sizes, default=0)) > most:
        raise BadField(
            param,
            f"This model's maximum context length is {room:,} tokens, and the text has {size:,} bytes: at most {most:,} are read.",
            TOO_LONG,
        )


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


Reader = Callable[[object], Ask]
