"""A source's test rows as tasks: the conversation before its last reply is asked, the reply is the reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.params import ChoiceCheck, JsonCheck, OwnCheck, Params, ToolCallCheck
from abctune.llm.conversation import Message, Tools, conversation_of, text_hash
from abctune.llm.inference import Answer
from stages.eval.calls import call_of, json_object
from stages.eval.generation import answer_conversations
from stages.eval.own_checks import Reference, check_answer, label_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True)
class OwnTask:
    """A test row and what its answer is compared with."""

    id: str
    source: str
    messages: list[Message]
    tools: Tools | None
    reference: Reference


def ask_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], params: Params
) -> list[Row]:
    """Lines of tasks.jsonl for every source that evaluation.checks names.

    Raises:
        UserError: a source has no row that its check can judge.
    """
    rows, lines = list(rows) if params.evaluation.checks else [], []
    for source, check in params.evaluation.checks.items():
        tasks = own_tasks(source, check, rows)
        limit = check.max_new_tokens or params.active.eval.max_new_tokens
        answers = answer_conversations(model, tokenizer, [(t.messages, t.tools) for t in tasks], limit)
        lines += [line_of(check, task, answer) for task, answer in zip(tasks, answers, strict=True)]
    return lines


def own_tasks(source: str, check: OwnCheck, rows: Sequence[Row]) -> list[OwnTask]:
    """At most `check.rows` tasks, one of each group, in an order that a hash of the groups fixes.

    One of each group, since rows that share text are not independent, which the intervals take them to be.
    """
    tasks: dict[str, OwnTask] = {}
    for row in sorted(rows, key=lambda row: (text_hash(row["group"]), row["id"])):
        if len(tasks) == check.rows:
            break
        if row["source"] == source and row["group"] not in tasks and (task := task_of(row, check)):
            tasks[row["group"]] = task
    if not tasks:
        raise UserError(
            f"params.yaml: evaluation.checks.{source}: none of its test rows {NEEDS.get(check.kind, 'ends with a reply')};"
            " change the check, or look at column `messages` of data/split/*/test.parquet"
        )
    return list(tasks.values())


NEEDS = {
    "choice": "has a last reply that names one of `labels` and no other",
    "json": "has a last reply that is a JSON object with the fields of `equal`",
    "tool_call": "ends with tool calls",
}


def task_of(row: Row, check: OwnCheck) -> OwnTask | None:
    """The row as a task; None where its last reply is none, or none that the check can judge."""
    messages, tools = conversation_of(row)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    reply = messages[-1]
    calls = tuple(call for one in reply.get("tool_calls", []) if (call := call_of(one)))
    prompt = "\n\n".join(message["content"] for message in messages[:-1])
    reference = Reference(reply["content"], calls, prompt)
    if not fits(check, reference):
        return None
    return OwnTask(row["id"], row["source"], messages[:-1], tools, reference)


def fits(check: OwnCheck, reference: Reference) -> bool:
    """Whether the held-out reply itself says what a right answer is."""
    if isinstance(check, ChoiceCheck):
        return label_of(reference.text, check.labels) is not None
    if isinstance(check, JsonCheck) and check.equal:
        return set(check.equal) <= set(json_object(reference.text) or {})
    return bool(reference.calls) if isinstance(check, ToolCallCheck) else True


def line_of(check: OwnCheck, task: OwnTask, answer: Answer) -> Row:
    """One answer, checked."""
    held = check_answer(check, task.reference, answer.text)
    labels = check.labels if isinstance(check, ChoiceCheck) else None
    calls = [json.dumps(call, ensure_ascii=False) for call in task.reference.calls]
    return {
        "id": task.id,
        "kind": check.kind,
        "source": task.source,
        "prompt": task.reference.prompt,
        "answer": answer.text,
        "n_tokens": len(answer.token_ids),
        "stopped": answer.stopped,
        "checks": held,
        "passed": all(held.values()),
        "expected": label_of(task.reference.text, labels)
        if labels
        else "\n".join([task.reference.text, *calls]).strip(),
        "predicted": label_of(answer.text, labels) if labels else None,
    }
