"""All subjects of the panel by name, in the order in which they run."""

from __future__ import annotations

from panel.subject import Subject
from panel.subjects import detection, images, minilm, small, tabular, text

MODULES = (minilm, images, small, detection, text, tabular)
ALL: dict[str, Subject] = {subject.name: subject for module in MODULES for subject in module.SUBJECTS}
