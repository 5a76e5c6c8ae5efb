"""Tokens to text that may be sent: whatever the tokens are cut like, the whole is right, and nothing of a stop string goes out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from decoder_case import SENTENCES, need
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowbit.serving.language.writing import BROKEN, Detokenizer, Stops, Writer

ALPHABET = "abcxy .é€漢👩‍🚀"


def cut(text: str, places: Sequence[int]) -> list[str]:
    """A text in pieces."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[one:other] for one, other in itertools.pairwise(edges)]


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """By looking at every beginning of the text: what stands before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        met = [(end - len(stop), stop) for stop in stops if text[:end].endswith(stop)]
        if met:
            place, stop = min(met)
            return text[:place], stop
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    st.text(ALPHABET, max_size=40),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 100), max_size=20),
)
@example("abcd", ["abcd", "c"], [1, 2, 3])
@example("aab", ["ab"], [1, 2])
@example("abab", ["abb", "babb"], [1, 2, 3])
def test_a_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], places: list[int]) -> None:
    found, given_out = Stops(stops), ""
    for piece in cut(text, places):
        given_out += found.push(piece)
        assert first_stop(text, stops)[0].startswith(given_out), "something of a stop string went out"
    met = found.met
    given_out += found.flush()
    assert (given_out, met) == first_stop(text, stops)


def test_what_cannot_become_a_stop_string_goes_out_at_once() -> None:
    stops = Stops(["\n\n", "END"])
    assert [stops.push(piece) for piece in ("one", "\n", "two E", "N", "t", "EN", "D more")] == ["one", "", "\ntwo ", "", "ENt", "", ""]
    assert stops.met == "END"
    assert stops.flush() == ""


def bytes_decode(tokens: Sequence[int]) -> str:
    """As byte-level tokenizers decode: a token is a byte."""
    return bytes(tokens).decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
@example("👩‍🚀".encode())
@example(b"\xe2\x82a\xe2\x82\xac\xff\xe2")
def test_bytes_come_out_as_they_would_all_at_once(raw: bytes) -> None:
    found = Detokenizer(bytes_decode)
    pieces = [found.push(byte) for byte in raw]
    assert "".join(pieces) + found.flush() == bytes_decode(raw)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20).filter(lambda text: BROKEN not in text))
def test_no_broken_character_is_ever_sent(text: str) -> None:
    found = Detokenizer(bytes_decode)
    for char in text:
        *within, last = [found.push(byte) for byte in char.encode()]
        assert (within, last) == ([""] * len(within), char), "a character goes out whole, and at once"
    assert found.flush() == ""


@cache
def tokenizer(kind: str) -> Any:
    """Real tokenizers of the two kinds that language models have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        made.train_from_iterator([*SENTENCES, "漢字 и кириллица 👩‍🚀"] * 3, trainer)
        return made
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for word in ("▁", "▁the", "the", "▁a", "h", "ous", "e", "é", "▁é", "漢", "t", "s", "."):
        vocabulary.setdefault(word, len(vocabulary))
    made = Tokenizer(models.BPE(vocabulary, [("h", "ous")] if "hous" in vocabulary else [], byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return made


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=150, deadline=None)
@given(text=st.text("the hous.a é漢и👩‍🚀", max_size=30))
def test_real_tokenizers_give_back_the_text(kind: str, text: str) -> None:
    need("tokenizers")
    made = tokenizer(kind)
    ids = made.encode(text).ids
    found = Detokenizer(made.decode)
    pieces = [found.push(token) for token in ids]
    assert all(BROKEN not in piece for piece in pieces)
    assert "".join(pieces) + found.flush() == made.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_at_all(kind: str, data: st.DataObject) -> None:
    """A model may say anything: nothing is lost but, for byte fallback, how broken characters are counted."""
    need("tokenizers")
    made = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, made.get_vocab_size() - 1), max_size=25))
    found = Detokenizer(made.decode)
    given_out = "".join([found.push(token) for token in ids]) + found.flush()
    if kind == "bytes":
        assert given_out == made.decode(ids)
    else:
        place = 0
        for char in made.decode(ids).replace(BROKEN, ""):
            place = given_out.find(char, place) + 1
            assert place, "a character is lost"


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab €漢", max_size=30),
    st.lists(st.text("ab €漢", min_size=1, max_size=4), max_size=3),
)
def test_a_writer_does_both(text: str, stops: list[str]) -> None:
    writer, pieces, tokens = Writer(bytes_decode, stops), [], 0
    for byte in text.encode():
        tokens += 1
        pieces.append(writer.push(byte))
        if writer.stopped:
            break
    pieces.append(writer.flush())
    wanted, met = first_stop(text, stops)
    assert "".join(pieces) == writer.text == wanted
    assert (writer.stopped, writer.tokens, writer.given) == (met is not None, tokens, len(wanted))
    assert all(BROKEN not in piece for piece in pieces)


@pytest.mark.parametrize("raw", [b"\x80" * 3000, BROKEN.encode() * 1000, b"", b"a\xe2\x82"])
def test_what_never_becomes_text_is_looked_at_once(raw: bytes) -> None:
    """End tokens that are passed over (here: 256), and bytes that are no characters, for as long as a model may speak."""
    looked = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal looked
        looked += len(tokens)
        return bytes_decode([each for each in tokens if each < 256])

    tokens = [*b"one ", *raw, *[256] * 1500, *b" two"]
    found = Detokenizer(decode)
    pieces = "".join([found.push(token) for token in tokens])
    assert looked < 400 * len(tokens), "not all of them for each"
    text = pieces + found.flush()
    assert (text[:4], text[-4:]) == ("one ", " two")
    if not raw:
        assert text == "one  two"


def test_an_answer_that_ends_within_a_character_says_so() -> None:
    writer = Writer(bytes_decode)
    assert [writer.push(byte) for byte in b"a\xe2\x82"] == ["a", "", ""]
    assert writer.flush() == BROKEN
