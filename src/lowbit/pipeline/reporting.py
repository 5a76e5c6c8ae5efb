"""What a search tells whoever is watching. The terminal's view is cli/live.py; tests and the Python API stay silent."""

from __future__ import annotations

from lowbit.types import Candidate


class Reporter:
    """Says nothing. Subclasses show what they care about.

    This is the one base class meant to be overridden: every method has a do-nothing default.
    """

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; `total` steps, where that is known."""

    def advance(self, done: int) -> None:
        """`done` steps of the current stage are finished."""

    def candidate(self, candidate: Candidate) -> None:
        """A candidate is finished, or more is known about it."""

    def note(self, text: str) -> None:
        """Something worth a line."""
