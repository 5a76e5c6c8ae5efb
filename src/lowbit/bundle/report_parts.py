"""The report's small building blocks; all text that comes in is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from lowbit.bundle.schema import CandidateEntry

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
