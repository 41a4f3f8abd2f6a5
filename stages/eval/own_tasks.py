"""A source's test rows as tasks: the conversation before a reply is asked, the reply is the reference.

That is the last reply; for tool calls every reply that makes some, as most conversations with calls end with a text. What
the data mark as not to be learned is not a reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.params import ChoiceCheck, JsonCheck, OwnCheck, Params, ToolCallCheck
from abctune.core.records import TaskRecord
from abctune.llm.conversation import Message, Tools, conversation_of, learned_turns, text_hash
from abctune.llm.inference import Answer
from abctune.llm.thoughts import parted
from stages.eval.calls import call_of, json_calls, json_object, tagged_calls
from stages.eval.generation import answer_conversations
from stages.eval.own_checks import Reference, check_answer, label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True)
class OwnTask:
    """A reply of a test row that is asked for, and what the answer is compared with."""

    id: str  # of the conversation
    source: str
    messages: list[Message]
    tools: Tools | None
    reference: Reference


def ask_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], params: Params
) -> list[TaskRecord]:
    """Lines of tasks.jsonl for every source that evaluation.checks names.

    Raises:
        UserError: a source has no row that its check can judge.
    """
    rows = list(rows) if params.evaluation.checks else []
    lines: list[TaskRecord] = []
    for source, check in params.evaluation.checks.items():
        tasks = own_tasks(source, check, rows)
        limit = check.max_new_tokens or params.active.eval.max_new_tokens
        answers = answer_conversations(model, tokenizer, [(t.messages, t.tools) for t in tasks], limit)
        answered = groupby(zip(tasks, answers, strict=True), key=lambda pair: pair[0].id)
        lines += [line_of(check, *zip(*pairs, strict=True)) for _, pairs in answered]
    return lines


def own_tasks(source: str, check: OwnCheck, rows: Sequence[Row]) -> list[OwnTask]:
    """The tasks of at most `check.rows` conversations, one of each group, in an order that a hash of the groups fixes.

    One of each group, since rows that share text are not independent, which the intervals take them to be.
    """
    mine = [row for row in rows if row["source"] == source]
    mine.sort(key=lambda row: (text_hash(row["group"]), conversation_of_row(row), len(row["messages"])))
    tasks: dict[str, list[OwnTask]] = {}
    for _, same in groupby(mine, key=conversation_of_row):
        conversation = list(same)
        group = conversation[0]["group"]
        if len(tasks) < check.rows and group not in tasks and (found := tasks_of(conversation, check)):
            tasks[group] = found
    if not tasks:
        raise UserError(
            f"params.yaml: evaluation.checks.{source}: none of its test rows {NEEDS.get(check.kind, 'ends with a reply')};"
            " change the check, or look at column `messages` of data/split/*/test.parquet"
        )
    return [task for found in tasks.values() for task in found]


def conversation_of_row(row: Row) -> str:
    """The conversation that a row is an example of; where each reply is an example, a dash and its number follow."""
    return str(row["id"]).partition("-")[0]


NEEDS = {
    "choice": "has a last reply that names one of `labels` and no other",
    "json": "has a last reply that is a JSON object with the fields of `equal`",
    "tool_call": "has a supervised reply with tool calls",
}


def tasks_of(rows: Sequence[Row], check: OwnCheck) -> list[OwnTask]:
    """The tasks of one conversation's rows, in its order; none where no reply is one that the check can judge."""
    if isinstance(check, ToolCallCheck):
        return [
            task for row in rows for turn in range(len(row["messages"])) for task in task_of(row, turn, check)
        ]
    return list(task_of(rows[-1], len(rows[-1]["messages"]) - 1, check))


def task_of(row: Row, turn: int, check: OwnCheck) -> Iterator[OwnTask]:
    """The row's message number `turn` as a task; nothing unless it is a supervised reply that the check can judge."""
    if turn < 1 or not learned_turns(row)[turn]:
        return
    messages, tools = conversation_of(row)
    reply = messages[turn]
    calls = [call for one in reply.get("tool_calls", []) if (call := call_of(one))]
    if not calls:  # sets such as Hermes' write them into the text
        calls = json_calls(reply["content"]) or tagged_calls(reply["content"])
    prompt = "\n\n".join(message["content"] for message in messages[:turn])
    _, answer = parted(reply["content"])  # answers are compared without their thoughts, too
    reference = Reference(answer, tuple(calls), prompt)
    if fits(check, reference):
        yield OwnTask(conversation_of_row(row), row["source"], messages[:turn], tools, reference)


def fits(check: OwnCheck, reference: Reference) -> bool:
    """Whether the held-out reply itself says what a right answer is."""
    if isinstance(check, ChoiceCheck):
        return label_of(reference.text, check.labels) is not None
    if isinstance(check, JsonCheck) and check.equal:
        return set(check.equal) <= set(json_object(reference.text) or {})
    return bool(reference.calls) if isinstance(check, ToolCallCheck) else True


def line_of(check: OwnCheck, tasks: Sequence[OwnTask], answers: Sequence[Answer]) -> TaskRecord:
    """The answers to one conversation's tasks, checked: it passes when all do, and its texts stand one below another."""
    by_task = [
        check_answer(check, task.reference, answer.after_thoughts)
        for task, answer in zip(tasks, answers, strict=True)
    ]
    held = {name: all(one.get(name, False) for one in by_task) for one in by_task for name in one}
    labels = check.labels if isinstance(check, ChoiceCheck) else None
    last, answer = tasks[-1], "\n\n".join(one.text for one in answers)
    return TaskRecord(
        id=last.id,
        kind=check.kind,
        source=last.source,
        prompt=last.reference.prompt,
        answer=answer,
        n_tokens=sum(len(one.token_ids) for one in answers),
        stopped=all(one.stopped for one in answers),
        checks=held,
        passed=all(held.values()),
        expected=label_of(last.reference.text, labels)
        if labels
        else "\n\n".join(expected(task) for task in tasks),
        predicted=label_of(answers[-1].after_thoughts, labels) if labels else None,
    )


def expected(task: OwnTask) -> str:
    """The held-out reply as text, its calls as JSON where they are not in the text."""
    text = task.reference.text
    written = json_calls(text) or tagged_calls(text)
    calls = [] if written else [json.dumps(call, ensure_ascii=False) for call in task.reference.calls]
    return "\n".join([text, *calls]).strip()
