"""What turns a package's own files into training records: tiny's stand-ins for FineTome and WizardLM."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from abctune.core.errors import UserError
from stages.fetch.docstrings import docstrings
from stages.fetch.records import Record, serialise

MESSAGES = 4  # of a dialogue, from its start: several turns, and still short enough for a CPU
# Of a row's messages together; longer rows are left out. A CPU takes as long as a row has tokens: these have 81 on average,
# rows of any length 122 once cut at tiny's max_length. 654 dialogues and 353 instructions are left, and tiny draws 300.
MAX_CHARACTERS = 220
MIN_REPLY = 35  # characters, on average over a dialogue's replies: below it they are mostly "haha" and "yeah"
MAX_PROFANITY = (
    0.3  # probability; at 0.5 the classifier passes a few rude messages, at 0.3 it drops some harmless ones
)
MISSED = re.compile(
    r"\b(?:shit|porn|sex|suicid|crap)", re.IGNORECASE
)  # what it was seen to pass at 0.3 nevertheless
CONTACT = re.compile(
    r"https?://|www\.|\.(?:com|net|org|edu)\b|@\w"  # addresses and handles
    r"|\d[\d\s().-]{5,}\d"  # telephone numbers
    r"|\b(?:facebook|instagram|insta|snap ?chat|twitter|whatsapp|linkedin|venmo|e-?mail"
    r"|(?:my|your) number|(?:my|your|last) names?)\b",
    re.IGNORECASE,
)


def chitchat(wheel: Path) -> Iterator[Record]:
    """Short human-human dialogues in ShareGPT form, those with profanity or contact details left out."""
    with zipfile.ZipFile(wheel) as archive:
        dialogues = json.loads(archive.read("chitchat_dataset/dataset.json"))
    kept = [messages for dialogue in dialogues.values() if (messages := usable_messages(dialogue))]
    for messages in without_profanity(kept):
        speakers = itertools.cycle(("human", "gpt"))
        turns = [{"from": speaker, "value": text} for speaker, text in zip(speakers, messages, strict=False)]
        yield Record(serialise({"conversations": turns}), None)


def usable_messages(dialogue: dict[str, Any]) -> list[str] | None:
    """A dialogue's opening as alternating messages; None if it is too short or too long or has what must not be in it."""
    turns = merge_speakers(message for burst in dialogue["messages"] for message in burst)
    if len({speaker for speaker, _ in turns}) != 2:
        return None
    messages = [text for _, text in turns[:MESSAGES]]
    if len(messages) < MESSAGES or mean(map(len, messages[1::2])) < MIN_REPLY:
        return None
    if sum(map(len, messages)) > MAX_CHARACTERS:
        return None
    return None if any(CONTACT.search(text) or MISSED.search(text) for text in messages) else messages


def merge_speakers(messages: Iterator[dict[str, str]]) -> list[tuple[str, str]]:
    """(speaker, text) with consecutive messages of one speaker joined and white space made single blanks."""
    said = ((message["sender"], " ".join(message["text"].split())) for message in messages)
    by_speaker = itertools.groupby((pair for pair in said if pair[1]), key=lambda pair: pair[0])
    return [(speaker, " ".join(text for _, text in pairs)) for speaker, pairs in by_speaker]


def without_profanity(dialogues: list[list[str]]) -> Iterator[list[str]]:
    """The dialogues none of whose messages is likely rude."""
    from profanity_check import predict_prob  # brings scikit-learn, which takes a second to import

    if not dialogues:
        return
    # One call for all: the time is in the calls, not in the messages (20,000 a 0.2 s).
    rude = iter(predict_prob([text for messages in dialogues for text in messages]) >= MAX_PROFANITY)
    for messages in dialogues:
        if not any(list(itertools.islice(rude, len(messages)))):
            yield messages


def ruff_rules(wheel: Path) -> Iterator[Record]:
    """Up to three short instructions per lint rule: what it checks, why to avoid it, mend this code."""
    for rule in json.loads(rule_documentation(wheel)):
        if "Removed" in (rule.get("status") or {}):
            continue  # their texts are about ruff's history more than about Python
        for instruction, output in instructions(rule):
            if len(instruction) + len(output) > MAX_CHARACTERS:
                continue
            row = {"instruction": instruction, "input": "", "output": output}
            yield Record(serialise(row), rule["code"] or rule["name"])


def rule_documentation(wheel: Path) -> str:
    """What `ruff rule --all` prints, run from the wheel itself so that its version is the pinned one.

    Raises:
        UserError: the wheel holds no ruff that runs on this machine.
    """
    program = wheel.with_name("ruff.exe")  # the suffix is for Windows; elsewhere a name like any other
    with zipfile.ZipFile(wheel) as archive:
        member = next(
            (name for name in archive.namelist() if re.search(r"\.data/scripts/ruff(\.exe)?$", name)), None
        )
        if member is None:
            raise UserError(f"{wheel.name} holds no ruff program (recipe ruff_rules)")
        with archive.open(member) as source, program.open("wb") as target:
            shutil.copyfileobj(source, target)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    command = [str(program.resolve()), "rule", "--all", "--output-format", "json"]
    try:
        # From the wheel's folder, and isolated from any ruff settings above it.
        return subprocess.run(
            command, capture_output=True, check=True, encoding="utf-8", cwd=wheel.parent
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"the ruff of {wheel.name} does not run on this machine: {error}") from None


def instructions(rule: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(instruction, output) pairs from one rule's documentation."""
    parts = sections(rule["explanation"] or "")
    what, why = plain(parts.get("What it does", "")), plain(parts.get("Why is this bad?", ""))
    if not what or not why:
        return
    yield (
        f"What does the Python lint rule `{rule['name']}` check for, and why does it matter?",
        f"{what}\n\n{why}",
    )
    if subject := checked_subject(what):
        yield f"Why should I avoid {subject} in Python?", why
    if pair := bad_and_good(parts.get("Example") or parts.get("Examples") or ""):
        bad, good = pair
        reason = why.split("\n\n")[0]
        yield f"Improve this Python code:\n```python\n{bad}\n```", f"```python\n{good}\n```\n\n{reason}"


def sections(markdown: str) -> dict[str, str]:
    """The texts below the `## ` headings; a `## ` inside a code block is a comment there."""
    pieces = re.split(r"^## ([^\n]+)$|(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    heading = ""
    for text, title, code in zip(pieces[::3], ["", *pieces[1::3]], ["", *pieces[2::3]], strict=True):
        heading = (title or heading).strip()
        found[heading] = found.get(heading, "") + (code or "") + text
    return {heading: text.strip() for heading, text in found.items()}


# Code comes first, so that brackets inside it are left alone.
CODE_OR_LINK = re.compile(
    r"(?P<code>```.*?```|`[^`]+`)|\[(?P<text>(?:`[^`]+`|[^\[\]`])+)\](?:\([^()]*\)|\[[^\[\]]*\])?", re.DOTALL
)
CODE_BLOCK = re.compile(r"(```.*?```)", re.DOTALL)
LINK_TARGET = re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE)
LINE_WRAP = re.compile(r"(?<!\n)\n(?!\s*(?:\n|[-*>|]|\d+\.))")


def plain(markdown: str) -> str:
    """Prose without links and without the source's line breaks; code as it is."""
    text = CODE_OR_LINK.sub(lambda match: match["code"] or match["text"], LINK_TARGET.sub("", markdown))
    pieces = CODE_BLOCK.split(text)
    pieces[::2] = [LINE_WRAP.sub(" ", piece.strip("\n")) for piece in pieces[::2]]
    return "\n\n".join(piece for piece in pieces if piece.strip()).strip()


def checked_subject(what: str) -> str | None:
    """What a rule "Checks for", if that is one short sentence."""
    match = re.fullmatch(r"Checks? for ([^\n]{1,160}?)\.?", what.split("\n\n")[0])
    return match[1] if match and ". " not in match[1] else None


def bad_and_good(example: str) -> tuple[str, str] | None:
    """The code before the first "Use instead:" and the code after it."""
    before, marker, after = example.partition("Use instead:")
    code = re.compile(r"^```pyi?(?:thon)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
    bad, good = code.findall(before), code.findall(after)
    return (bad[-1].strip(), good[0].strip()) if marker and bad and good else None


RECIPES: dict[str, Callable[[Path], Iterator[Record]]] = {
    "chitchat": chitchat,
    "ruff_rules": ruff_rules,
    "docstrings": docstrings,
}
