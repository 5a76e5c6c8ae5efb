"""Questions to people: answers that matter and stay uncertain, in a queue that outlives the server.

One SQLite file (write-ahead log) holds them; every call runs in one thread of its own, away from the event loop. Inputs are kept only where
somebody asked for that: else a digest of them and the outputs, which is enough to find the request again and to say what was answered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lowbit.errors import UsageError
from lowbit.serving.answer.escalation import rows_of
from lowbit.serving.protocol import framing, wire
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal
from lowbit.types import Array, Feeds

FILE = "questions.sqlite"
MAX_OPEN = 10_000
MAX_ANSWERED = 100_000
MAX_ANSWER = 64 << 10
"""Bytes of an answer, as JSON."""
SHOWN = 64
"""Numbers of an output that a list of questions shows."""
Result = TypeVar("Result")

_TABLE = """
create table if not exists questions (
    id text primary key, asked real not null, model text not null, version text not null, variant text not null, reason text not null,
    request_id text not null, rows text not null, digest text not null, outputs blob not null, inputs blob,
    answer text, answered real, answered_by text
)
"""
_INDEXES = (
    "create index if not exists open_questions on questions (answered is null, asked)",
    "create index if not exists answered_questions on questions (answered) where answered is not null",
)


class AlreadyAnswered(Refusal):
    """Somebody else answered the question."""

    status, code, outcome = 409, "ALREADY_EXISTS", "answered"


@dataclass(frozen=True)
class Question:
    """What a person is asked about.

    Attributes:
        model: That answered.
        version: Of it.
        variant: Id of the one that answered.
        reason: Why a person: "critical", or the name of the route.
        request_id: Of the request.
        rows: Of the request, that are uncertain.
    """

    model: str
    version: str
    variant: str
    reason: str
    request_id: str = ""
    rows: list[int] = field(default_factory=list)


class Questions:
    """The queue.

    Attributes:
        keep_inputs: Keep the rows themselves, not only their digest.
        refused: Questions that found the queue full.
    """

    def __init__(self, folder: Path, *, keep_inputs: bool = False, max_open: int = MAX_OPEN, max_answered: int = MAX_ANSWERED) -> None:
        """Opens the queue in a folder, with all that is in it.

        Raises:
            UsageError: the folder cannot be written to, or the file is no queue.
        """
        self.keep_inputs, self.refused = keep_inputs, 0
        self._max_open, self._max_answered = max_open, max_answered
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(folder / FILE, check_same_thread=False, isolation_level=None)
            self._base.row_factory = sqlite3.Row
            for statement in ("pragma journal_mode=wal", "pragma synchronous=full", _TABLE, *_INDEXES):
                self._base.execute(statement)
            (self._open,) = self._base.execute("select count(*) from questions where answered is null").fetchone()
            (self._answered,) = self._base.execute("select count(*) from questions where answered is not null").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"The questions in {folder} cannot be opened: {error}.", "Give another folder: --state FOLDER.") from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lowbit-questions")

    async def ask(self, question: Question, inputs: Feeds, outputs: Mapping[str, Array], rows: Array) -> str | None:
        """Puts a question; once this returns it is on disk.

        Args:
            question: About what.
            inputs: The request's, [N, ...].
            outputs: Its answer's, [N, ...].
            rows: The uncertain ones.

        Returns:
            Its id; None where the queue is full: questions are never dropped to make room.
        """
        mine = rows_of(inputs, rows)
        row = {
            "id": secrets.token_hex(8),
            "asked": time.time(),
            **{name: getattr(question, name) for name in ("model", "version", "variant", "reason", "request_id")},
            "rows": json.dumps(question.rows),
            "digest": framing.digest(b"", mine).hex(),
            "outputs": framing.pack({name: array[rows] for name, array in outputs.items()}),
            "inputs": framing.pack(mine) if self.keep_inputs else None,
        }
        try:
            kept = await self._do(lambda: self._insert(row))
        except sqlite3.Error:  # a full disk must not cost the client its answer
            kept = False
        self.refused += not kept
        return str(row["id"]) if kept else None

    async def listed(self, *, state: str = "open", model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """Questions, the oldest first.

        Args:
            state: "open", "answered" or "all".
            model: Of one model alone.
            limit: At most so many.

        Raises:
            Malformed: no such state, or a limit that is none.
        """
        where = {"open": "answered is null", "answered": "answered is not null", "all": "true"}.get(state)
        if where is None:
            raise Malformed(f"State '{state}' is not known. Allowed: open, answered, all.")
        if not 1 <= limit <= 1000:
            raise Malformed("The limit must be from 1 to 1000.")
        query = f"select * from questions where {where} and (? is null or model = ?) order by asked limit ?"
        found = await self._do(lambda: self._base.execute(query, (model, model, limit)).fetchall())
        return [_document(row) for row in found]

    async def one(self, name: str, *, inputs: bool = True) -> dict[str, Any]:
        """A question with its inputs, if they were kept and are asked for.

        Raises:
            NotServed: there is none with that id.
        """
        row = await self._do(lambda: self._base.execute("select * from questions where id = ?", (name,)).fetchone())
        if row is None:
            raise NotServed(f"There is no question '{name}'.")
        return _document(row, whole=True, inputs=inputs)

    async def answer(self, name: str, answer: object, by: str = "") -> dict[str, Any]:
        """Answers a question; the first answer stands.

        Args:
            name: Its id.
            answer: Anything JSON can hold in `MAX_ANSWER` bytes.
            by: Who says so.

        Raises:
            Malformed: the answer is too long, or nothing that JSON or UTF-8 can hold.
            NotServed: there is none with that id.
            AlreadyAnswered: it has an answer.
        """
        text = _text(answer, by)
        done = await self._do(lambda: self._settle(name, text, by))
        found = await self.one(name)
        if not done:
            raise AlreadyAnswered(f"Question '{name}' has an answer.")
        return found

    def facts(self) -> dict[str, float]:
        """Open questions, and those that found no room."""
        return {"open": float(self._open), "refused": float(self.refused)}

    async def close(self) -> None:
        """Ends what is being written and lets the file go."""
        await self._do(self._base.close)
        self._thread.shutdown()

    # Both run in the thread alone, and count there: a client that goes away in between takes no place with it.

    def _insert(self, row: Mapping[str, Any]) -> bool:
        if self._open >= self._max_open:
            return False
        self._base.execute(f"insert into questions ({', '.join(row)}) values ({', '.join('?' * len(row))})", tuple(row.values()))
        self._open += 1
        return True

    def _settle(self, name: str, text: str, by: str) -> bool:
        update = "update questions set answer = ?, answered = ?, answered_by = ? where id = ? and answered is null"
        if not self._base.execute(update, (text, time.time(), by, name)).rowcount:
            return False
        self._open, self._answered = self._open - 1, self._answered + 1
        if (over := self._answered - self._max_answered) > 0:
            oldest = "select id from questions where answered is not null and id != ? order by answered limit ?"
            self._answered -= self._base.execute(f"delete from questions where id in ({oldest})", (name, over)).rowcount
        return True

    async def _do(self, work: Callable[[], Result]) -> Result:
        """In the thread; what was begun ends there, whether or not somebody still waits for it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))


def _text(answer: object, by: str) -> str:
    try:
        by.encode()
        text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (ValueError, TypeError, RecursionError):
        raise Malformed("An answer must be JSON and UTF-8: no NaN, no infinity, no halves of characters.") from None
    if max(size, len(by)) > MAX_ANSWER:
        raise Malformed(f"An answer may have {MAX_ANSWER:,} bytes, not {size:,}.")
    return text


def _document(row: sqlite3.Row, *, whole: bool = False, inputs: bool = False) -> dict[str, Any]:
    found = {name: row[name] for name in ("id", "asked", "model", "version", "variant", "reason", "request_id", "digest")}
    found["rows"] = json.loads(row["rows"])
    found["outputs"] = _shown(row["outputs"], whole)
    if inputs and row["inputs"] is not None:
        found["inputs"] = _shown(row["inputs"], whole)
    if row["answered"] is not None:
        found |= {"answer": json.loads(row["answer"]), "answered": row["answered"], "by": row["answered_by"]}
    return found


def _shown(value: bytes, whole: bool) -> list[dict[str, Any]]:
    arrays, _ = framing.unpack(value)
    listed = []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "datatype": wire.datatype_of(array.dtype.name), "shape": list(array.shape)}
        if whole or array.size <= SHOWN:
            entry["data"] = wire.to_json(array)
        listed.append(entry)
    return listed
