"""The report's small building blocks; all text that comes in is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from lowbit.bundle import words
from lowbit.bundle.schema import CandidateEntry, Manifest

_CHIPS = {
    "ship": "ship",
    "provisional": "provisional",
    "recover": "recover",
    "keep": "keep",
    "reject": "rejected",
    "refuse": "refused",
    "baseline": "baseline",
    "failed": "failed",
}


def page(title: str, body: str) -> str:
    """A whole page, offline and without scripts; `body` is HTML."""
    css = files("lowbit.bundle").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def header(manifest: Manifest, name: str, head: words.Headline, tiles: Iterable[str]) -> str:
    """What a report begins with: the model, the verdict, one sentence and the numbers that matter; `tiles` are HTML, the rest text."""
    verdict = manifest.decision.verdict
    day = f'<time datetime="{manifest.created}">{manifest.created[:10]}</time>'
    return (
        f'<header class="v-{verdict}"><p class="brand"><b>lowbit</b><span>{escape(name)}</span>{day}</p>'
        f'<h1>{chip(verdict)}<span class="action">{escape(head.action)}</span></h1><p class="headline">{escape(head.sentence)}</p>'
        f'<div class="tiles">{"".join(tiles)}</div></header>'
    )


def footer(manifest: Manifest) -> str:
    """What a report ends with: by what and when it was made."""
    made = f"Made by lowbit {manifest.lowbit_version} on {manifest.created[:10]}."
    return f"<footer>{escape(made)} Every number here is in bundle.json.</footer>"


def kind(entry: CandidateEntry, baseline_id: str) -> str:
    """The class by which a candidate is coloured: its verdict, "baseline" or "failed"."""
    if entry.id == baseline_id:
        return "baseline"
    return "failed" if entry.status == "failed" else entry.verdict or "reject"


def chip(word: str) -> str:
    """A verdict as a coloured word."""
    return f'<span class="chip v-{word}">{_CHIPS[word]}</span>'


def section(ident: str, title: str, body: str, lead: str = "") -> str:
    """A section with a heading; `body` is HTML, the rest text."""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{ident}" aria-labelledby="h-{ident}"><h2 id="h-{ident}">{escape(title)}</h2>{intro}{body}</section>'


def tile(label: str, value: str, note: str, drawing: str = "") -> str:
    """One of the numbers that matter; `drawing` is SVG, the rest text."""
    head = f'<p class="label">{escape(label)}</p><p class="value">{escape(value)}</p>'
    return f'<div class="tile">{head}{drawing}<p class="note">{escape(note)}</p></div>'


def size_tile(manifest: Manifest, *, drawn: bool) -> str:
    """What the chosen candidate weighs, and what the model weighed before; `drawn`: with a bar for each."""
    chosen, ratio = manifest.chosen, words.smaller(manifest, manifest.chosen)
    before = manifest.baseline.size_bytes or manifest.source.size_bytes
    if chosen.size_bytes is None or ratio is None or abs(ratio - 1) < 0.02:
        return tile("Size", words.size(chosen.size_bytes or before), "As large as before.")
    word = f"{words.times(ratio)} smaller" if ratio > 1 else f"{words.times(1 / ratio)} larger"
    bars = pair(before, chosen.size_bytes) if drawn else ""
    return tile("Size", words.size(chosen.size_bytes), f"{word}; it was {words.size(before)}.", bars)


def pair(before: float | None, now: float) -> str:
    """Two bars, before and now."""
    if not before:
        return ""
    top = max(before, now)
    return (
        '<svg class="pair" width="100%" height="26" aria-hidden="true">'
        f'<rect class="before" y="2" height="9" width="{100 * before / top:.1f}%" rx="2"/>'
        f'<rect class="now" y="15" height="9" width="{100 * now / top:.1f}%" rx="2"/></svg>'
    )


def bullets(texts: Iterable[str], tag: str = "ul") -> str:
    """Sentences as a list."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<{tag}>{items}</{tag}>" if items else ""


def code_block(title: str, code: str) -> str:
    """Code under a small heading."""
    return f'<h3>{escape(title)}</h3><pre tabindex="0"><code>{escape(code)}</code></pre>'


def facts(rows: Mapping[str, str]) -> str:
    """Terms and what is known of them; empty ones are left out."""
    pairs = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in rows.items() if text)
    return f'<dl class="facts">{pairs}</dl>'


def breakable(ident: str) -> str:
    """A candidate's id, escaped, that may break after its "@"."""
    return escape(ident).replace("@", "@<wbr>")
