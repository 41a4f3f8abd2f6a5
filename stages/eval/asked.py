"""What a model's published adapter is asked: the fixed prompts, and the tasks that the profile sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from abctune.core.params import Params
from abctune.core.records import SampleRecord, TaskRecord
from abctune.llm.prompts import PROMPTS
from stages.eval.generation import answer_all, samples_of
from stages.eval.lint import code_tasks
from stages.eval.own_tasks import ask_own
from stages.eval.tasks import results, written_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OWN_COLUMNS = ["id", "group", "source", "messages", "extra"]


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: pa.Table, params: Params
) -> tuple[list[SampleRecord], list[TaskRecord]]:
    """The answers to the fixed prompts, and the checked answers to the tasks.

    Args:
        rows: the common test rows, some of which become tasks.
    """
    settings = params.active.eval
    tasks = written_tasks(settings.task_prompts)
    tasks += code_tasks(rows.select(["id", "group", "messages"]).to_pylist(), settings.code_rows)
    prompts = [*PROMPTS, *(task.prompt for task in tasks)]
    answers = answer_all(model, tokenizer, prompts, settings.max_new_tokens)
    own = ask_own(model, tokenizer, rows.select(OWN_COLUMNS).to_pylist(), params)
    return samples_of(answers[: len(PROMPTS)]), results(tasks, answers[len(PROMPTS) :]) + own
