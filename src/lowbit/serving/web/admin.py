"""What people and operators ask of a server: questions, flags, the policy.

GET  /v1/questions?state=open|answered|all&model=NAME&limit=50
GET  /v1/questions/ID
POST /v1/questions/ID         {"answer": anything, "by": "who"}          only with API keys; without them questions have no inputs
GET  /v1/admin/policy         only with API keys, as are flags
GET  /v1/admin/flags
PUT  /v1/admin/flags          {"FLAG": true | false | "10%" | null (the file's again)}
"""

from __future__ import annotations

from lowbit.errors import UsageError
from lowbit.serving.answer.answering import Answers
from lowbit.serving.answer.questions import Questions
from lowbit.serving.protocol.refusals import Malformed
from lowbit.serving.web.pages import Asked, Page, Pages


def mount(pages: Pages, answers: Answers, *, keyed: bool) -> None:
    """Adds these pages to a server's.

    Args:
        pages: The server's.
        answers: Whose policy and questions.
        keyed: Whether the server asks for API keys. Without them there are no admin pages, no answers to questions and no clients' inputs:
            anybody who reaches the port could turn flags, answer in another's place, and read what others sent.
    """
    if keyed:
        _mount_admin(pages, answers)
    if answers.questions is not None:
        _mount_questions(pages, answers.questions, keyed)


def _mount_admin(pages: Pages, answers: Answers) -> None:
    async def policy(_: Asked) -> Page:
        return Page({"policy": answers.policy.now.to_yaml()})

    async def flags(_: Asked) -> Page:
        return Page({"flags": dict(answers.policy.now.flags)})

    async def turn(asked: Asked) -> Page:
        try:
            return Page({"flags": answers.policy.turn(asked.json())})
        except UsageError as error:
            raise Malformed(str(error)) from error

    pages.add("GET", "/v1/admin/policy", policy)
    pages.add("GET", "/v1/admin/flags", flags)
    pages.add("PUT", "/v1/admin/flags", turn)


def _mount_questions(pages: Pages, questions: Questions, keyed: bool) -> None:
    async def listed(asked: Asked) -> Page:
        found = await questions.listed(state=asked.query.get("state", "open"), model=asked.query.get("model"), limit=asked.limit())
        return Page({"questions": found})

    async def one(asked: Asked) -> Page:
        return Page(await questions.one(asked.path["id"], inputs=keyed))

    async def answer(asked: Asked) -> Page:
        document = asked.json()
        by = document.get("by", "")
        if document.keys() - {"answer", "by"} or "answer" not in document or not isinstance(by, str):
            raise Malformed('An answer is {"answer": anything, "by": "who"}.')
        return Page(await questions.answer(asked.path["id"], document["answer"], by))

    pages.add("GET", "/v1/questions", listed)
    pages.add("GET", "/v1/questions/{id}", one)
    if keyed:
        pages.add("POST", "/v1/questions/{id}", answer)
