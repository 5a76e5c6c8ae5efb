"""What is on a page of HTML, for tests that read it as a reader does."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = "<script>alert(1)</script><img src=http://evil.test/x>&\"'"


class Outline(HTMLParser):
    """Checks that tags nest, and collects ids, headings and text."""

    VOID = frozenset({"meta", "link", "wbr", "br", "hr", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if self.open[-1] == "h2":
                self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())
