"""Whether too many rows of a source are unusable, which suggests a problem with the whole source rather than a few rows."""

from __future__ import annotations

import json
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.params import PARAMS_FILE, Params
from abctune.core.plural import counted
from abctune.core.records import FormatRecord, FormattedRows
from abctune.core.schemas import NOT_UTF8
from abctune.llm.stops import NO_STOP
from stages.format.formatter import BY_TEMPLATE, NOTHING_LEFT, TOO_LONG, Formatter
from stages.format.render import REWRITES
from stages.format.trials import helpful_setting
from stages.format.turns import NUMBER

UNREAD = "unread field: "
# What helps, by how the reason begins; the first that fits.
REMEDIES = (
    (UNREAD, "set sources.{source}.ignore: [{fields}], or name under sources.{source}.columns what belongs to the conversation"),
    (NOTHING_LEFT, "raise profiles.{profile}.data.max_length in {file} from {max_length} to {longest}: the questions alone are longer"),
    (NO_STOP, "name in generation_config.json of the model's folder, as `eos_token_id`, the tokens that end a reply (published models do); or set profiles.{profile}.model.chat_template in {file} to a template that prints one"),
    (REWRITES, "set profiles.{profile}.model.chat_template in {file} to models/own/NAME.jinja, a copy of the model's template, changed to print before a reply what it prints to have one written"),
    (BY_TEMPLATE, "set profiles.{profile}.model.chat_template in {file} to models/own/NAME.jinja, a copy of the model's template, changed to print such conversations"),
    ("schema not recognised", "say under sources.{source}.columns which column is the user's and which the assistant's"),
    ("the conversation is inside", "write what is inside to a file of its own, a row each: an object with `messages`"),
    ("turns under", "write each turn as an object, as {{\"role\": \"user\", \"content\": \"...\"}}"),
    ("Python's notation", "write them with json.dumps, not as str() does"),
    ("unknown role", "name each turn's role system, user, assistant or tool"),
    ("no assistant turn", "say under sources.{source}.columns which column holds the answers, as {{user: messages, assistant: COLUMN}}, or write each as the last turn"),
    ("an answer to avoid", "leave the rows out of the file, or write the answer that is right in its place, and true"),
    ("marked not to be learned", "leave the rows out of the file, or set the weight to 1 if they are to be learned"),
    ("no reply is marked", "leave the rows out of the file, or mark in each a reply that is to be learned, as weight: 1"),
    (NOT_UTF8, "save the file as UTF-8 (if all of it is Windows-1252: `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`), a Parquet file's column of bytes as text, and leave out halves of characters (such as \\ud83d alone)"),
    (NUMBER, "write each as the text that is to be learned, as \"1\" or the label's name"),
    ("content is not text", "leave the rows with images and other such parts out of the file, or write their content as text"),
    ("no list of turns", "check sources.{source}.schema"),
    ("no 'instruction'", "check sources.{source}.schema and sources.{source}.columns"),
    ("a preference pair", "keep the chosen answers only, as messages"),
    ("", "mend the rows"),
)  # fmt: skip


def check_quarantine(
    formatter: Formatter, record: FormatRecord, params: Params, mixed: Path, rejected: Path
) -> None:
    """Stop when a source has more unusable rows than its limit allows, or no row is usable.

    Args:
        formatter: what has read the rows.
        record: its counts.
        rejected: where the refused rows are, for the message.

    Raises:
        UserError: with counts by reason, the limit's key, and what helps.
    """
    longest = formatter.tally.longest_refused
    lines = [
        _line(source, counts, params, rejected, remedy(source, counts, params, formatter))
        for source, counts in record.sources.items()
        if unwanted(counts) / counts.read > _limit(source, params)[1]
    ]
    if lines:
        raise UserError(f"{mixed}: " + "\n       ".join(lines))
    if not any(counts.kept for counts in record.sources.values()):
        lengths = f"from {params.active.data.max_length} to {max(longest.values(), default=0)}"
        helps = f"; raise profiles.{params.profile}.data.max_length {lengths} in {PARAMS_FILE}, or set overlong to cut"
        too_long = any(TOO_LONG in counts.quarantined for counts in record.sources.values())
        raise UserError(f"{mixed} has no usable row{helps if too_long else ''}")


def unwanted(counts: FormattedRows) -> int:
    """Refused rows, without those that `overlong: drop` asks to leave out."""
    return counts.n_quarantined - counts.quarantined.get(TOO_LONG, 0)


def _limit(source: str, params: Params) -> tuple[str, float]:
    own = params.sources[source].max_quarantined
    if own is not None:
        return f"sources.{source}.max_quarantined", own
    return "format.max_quarantined", params.format.max_quarantined


def _line(source: str, counts: FormattedRows, params: Params, rejected: Path, helps: str) -> str:
    key, limit = _limit(source, params)
    by_count = sorted(counts.quarantined.items(), key=lambda pair: -pair[1])
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in by_count[:5])
    return (
        f"{unwanted(counts):,} of {counted(counts.read, 'row')} of {source} ({unwanted(counts) / counts.read:.1%}) cannot be used "
        f"({reasons}); the limit is {key} = {limit:g} in {PARAMS_FILE}. The rows are in {rejected}. "
        f"To use them, {helps}; to do without them, set sources.{source}.max_quarantined"
    )


def remedy(source: str, counts: FormattedRows, params: Params, formatter: Formatter) -> str:
    """The remedy for the most common reason for which rows of a source are refused.

    Where that is the chat template, settings of it are tried on some of the rows, and the one that helps is named.

    Args:
        formatter: what has read and counted the rows.
    """
    reasons = sorted(
        (reason for reason in counts.quarantined if reason != TOO_LONG),
        key=lambda one: -counts.quarantined[one],
    )
    start, text = next(one for one in REMEDIES if reasons[0].startswith(one[0]))
    if start in (REWRITES, BY_TEMPLATE) and (
        setting := helpful_setting(formatter.reader, formatter.refused[source])
    ):
        name, usable = setting
        tried = len(formatter.refused[source])
        return f"set profiles.{params.profile}.model.{name} in {PARAMS_FILE}, with which {usable} of {tried} rows that were tried can be used"
    return text.format(
        source=source,
        file=PARAMS_FILE,
        profile=params.profile,
        max_length=params.active.data.max_length,
        longest=formatter.tally.longest_refused[source],
        fields=", ".join(map(_in_yaml, unread_fields(counts))),
    )


def _in_yaml(name: str) -> str:
    """A name as params.yaml takes it in a list."""
    plain = name.isidentifier() and name.lower() not in ("true", "false", "null")
    return name if plain else json.dumps(name, ensure_ascii=False)


def unread_fields(counts: FormattedRows) -> list[str]:
    """The fields that are not read, for which rows are refused."""
    return [reason.removeprefix(UNREAD) for reason in counts.quarantined if reason.startswith(UNREAD)]
