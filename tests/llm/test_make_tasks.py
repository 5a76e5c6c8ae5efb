"""The example's tasks: made of the books and of nothing else."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from lowbit.llm.evaluate.answers import read_questions
from lowbit.llm.evaluate.tasks import read_task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "language"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tasks", EXAMPLE / "make_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["make_tasks"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def book(tmp_path: Path) -> Path:
    """Sentences of different lengths, each with its number in words."""
    draw = random.Random(1)
    names = ["river", "house", "window", "letter", "winter", "bridge", "garden", "school"]
    sentences = [
        f"Number {'x' * (i % 7 + 1)} {' '.join(draw.choice(names) for _ in range(draw.randint(5, 12)))} stood by Madame Walravens that day."
        for i in range(120)
    ]
    (path := tmp_path / "book.txt").write_text("\n".join(sentences))
    return path


def test_each_right_sentence_follows_its_passage(script: ModuleType, tmp_path: Path) -> None:
    made = script.Book.read(book(tmp_path))
    text = " ".join(made.text.split())
    rows = script.cloze(made, 20, random.Random(0))
    assert len(rows) == 20
    for row in rows:
        right = row["choices"][row["answer"]]
        assert " ".join(f"{row['context']} {right}".split()) in text
        assert all(" ".join(choice.split()) in text for choice in row["choices"])
        lengths = [len(choice) for choice in row["choices"]]
        assert max(lengths) - min(lengths) < 30, "the length gives nothing away"


def test_each_wrong_order_is_the_right_one_with_two_words_exchanged(script: ModuleType, tmp_path: Path) -> None:
    made = script.Book.read(book(tmp_path))
    text = " ".join(made.text.split())
    for row in script.order(made, 20, random.Random(0)):
        right = row["choices"][row["answer"]].split()
        assert " ".join(right) in text
        for choice in row["choices"]:
            changed = [i for i, (a, b) in enumerate(zip(right, choice.split(), strict=True)) if a != b]
            assert len(changed) in (0, 2)
            assert 0 not in changed


def test_each_word_is_the_one_that_comes_next(script: ModuleType, tmp_path: Path) -> None:
    made = script.Book.read(book(tmp_path))
    rows = script.words(made, 10, random.Random(0))
    assert len(rows) == 10
    text = " ".join(made.text.split())
    for row in rows:
        assert " ".join(f"{row['context']} {row['answers'][0]}".split()) in text


def test_the_files_of_the_example_are_what_the_script_makes(script: ModuleType, shared_data: Path) -> None:
    books = [script.Book.read(path) for path in sorted((shared_data / "small-llama").glob("eval_*.txt"))]
    draw = random.Random(0)
    for kind in ("cloze", "order", "words"):
        rows = [row for each in books for row in getattr(script, kind)(each, 25, draw)]
        if kind != "cloze":
            assert rows == [json.loads(line) for line in (EXAMPLE / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_files_of_the_example_are_read() -> None:
    task = read_task(EXAMPLE / "order.jsonl")
    assert task.metric == "acc_norm"
    assert len(task.rows or ()) == 100
    questions = read_questions(EXAMPLE / "words.jsonl")
    assert all(question.words == 1 for question in questions)
    assert len(questions) > 60
