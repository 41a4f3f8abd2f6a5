"""Checks that a program can make of an answer: its format, counts, words, and whether code or JSON parses.

Each check takes the answer and what stages/eval/tasks.yaml gives it, and says whether the answer keeps to it. That
an instruction can be verified without a judge is the idea of IFEval (Zhou et al. 2023, "Instruction-Following
Evaluation for Large Language Models"); the prompts and checks here are the project's own.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# How often: 3 is exactly 3; [2, 5] is from 2 to 5; [2, null] is 2 or more.
Range = int | Sequence[int | None]

FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
MAX_CODE = 20_000  # characters; no answer is that long, and a parser's stack is not endless


def within(count: int, wanted: Range) -> bool:
    """Whether a count is the one wanted, or in the wanted range, ends included."""
    if isinstance(wanted, int):
        return count == wanted
    low, high = wanted
    return (low is None or count >= low) and (high is None or count <= high)


def word_list(text: str) -> list[str]:
    """Runs of letters and digits, lower case; an apostrophe or hyphen inside a word does not end it."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def words(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many words."""
    return within(len(word_list(answer)), wanted)


def characters(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many characters, white space at its ends left out."""
    return within(len(answer.strip()), wanted)


def sentences(answer: str, wanted: Range) -> bool:
    """Stretches that end in . ! or ?; a last one without its mark counts too."""
    pieces = re.split(r"[.!?]+[\"'”’)]*(?:\s+|$)", answer.strip())
    return within(sum(bool(word_list(piece)) for piece in pieces), wanted)


def lines(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many lines that are not blank."""
    return within(len(lines_of(answer)), wanted)


def paragraphs(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many paragraphs, separated by empty lines."""
    return within(len([part for part in re.split(r"\n\s*\n", answer) if part.strip()]), wanted)


def bullets(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many bullet points."""
    return within(sum(bool(re.match(r"[-*•] +\S", line)) for line in lines_of(answer)), wanted)


def numbered(answer: str, wanted: Range) -> bool:
    """Lines `1. ...`, `2. ...`: as many as wanted, and numbered 1, 2, 3 in this order."""
    found = [int(match[1]) for line in lines_of(answer) if (match := re.match(r"(\d{1,3})[.)] +\S", line))]
    return within(len(found), wanted) and found == list(range(1, len(found) + 1))


def bold(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many bold passages (`**so**`)."""
    return within(len(re.findall(r"\*\*[^*\s](?:[^*\n]*[^*\s])?\*\*", answer)), wanted)


def headings(answer: str, wanted: Range) -> bool:
    """Whether the answer has so many Markdown headings."""
    return within(sum(bool(re.match(r"#{1,6} +\S", line)) for line in lines_of(answer)), wanted)


def has_word(answer: str, word: str) -> bool:
    """`word`, or a longer word that begins with it: `bird` is in "birds"."""
    return re.search(rf"(?<!\w){re.escape(word)}", answer, re.IGNORECASE) is not None


def mentions(answer: str, wanted: Sequence[str]) -> bool:
    """Whether the answer has all of these words."""
    return all(has_word(answer, word) for word in wanted)


def mentions_any(answer: str, wanted: Sequence[str]) -> bool:
    """Whether the answer has at least one of these words."""
    return any(has_word(answer, word) for word in wanted)


def avoids(answer: str, unwanted: Sequence[str]) -> bool:
    """Whether the answer has none of these words."""
    return not any(has_word(answer, word) for word in unwanted)


def times(answer: str, wanted: dict[str, Range]) -> bool:
    """How often each word occurs, as a whole word."""
    found = word_list(answer)
    return all(within(found.count(word.lower()), count) for word, count in wanted.items())


def ordered(answer: str, wanted: Sequence[str]) -> bool:
    """All the words, each after the one before."""
    position = 0
    for word in wanted:
        match = re.compile(rf"(?<!\w){re.escape(word)}", re.IGNORECASE).search(answer, position)
        if match is None:
            return False
        position = match.end()
    return True


def starts(answer: str, wanted: str) -> bool:
    """Whether the answer starts with this text."""
    return answer.strip().startswith(wanted)


def ends(answer: str, wanted: str) -> bool:
    """Whether the answer ends with this text."""
    return answer.strip().endswith(wanted)


def case(answer: str, wanted: str) -> bool:
    """`upper` or `lower`; at least one letter must be there to have a case."""
    return answer.isupper() if wanted == "upper" else answer.islower()


def without(answer: str, unwanted: str) -> bool:
    """The answer has none of these characters, and is not empty."""
    return bool(word_list(answer)) and not set(answer.lower()) & set(unwanted.lower())


def one_of(answer: str, allowed: Sequence[str]) -> bool:
    """The answer is one of these and nothing else; case and a final full stop do not matter."""
    return answer.strip().removesuffix(".").lower() in [text.lower() for text in allowed]


def pattern(answer: str, wanted: str) -> bool:
    """The whole answer matches the regular expression."""
    return re.fullmatch(wanted, answer.strip()) is not None


def wrapped(answer: str, marks: Sequence[str]) -> bool:
    """The answer begins and ends with the two marks, with some text between them."""
    left, right = marks
    text = answer.strip()
    return text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right)


def initial(answer: str, letter: str) -> bool:
    """Every word begins with this letter."""
    found = word_list(answer)
    return bool(found) and all(word.startswith(letter) for word in found)


def sorted_lines(answer: str, wanted: bool) -> bool:
    """Lines in alphabetical order, list marks aside."""
    texts = [" ".join(word_list(re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", line))) for line in lines_of(answer)]
    return (len(texts) > 1 and texts == sorted(texts)) is wanted


def table(answer: str, wanted: dict[str, Range]) -> bool:
    """A Markdown table: its number of columns, and of rows below the header."""
    rows = [line.strip("|").split("|") for line in lines_of(answer) if line.startswith("|")]
    rules = [all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in row) for row in rows]
    if len(rows) < 2 or not rules[1] or len({len(row) for row in rows}) != 1:
        return False
    return within(len(rows[0]), wanted["columns"]) and within(len(rows) - 2, wanted["rows"])


def fenced(answer: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block; an unclosed one extends to the end."""
    return [(match[1].strip().lower(), match[2]) for match in FENCE.finditer(answer)]


def json_value(answer: str, wanted: dict[str, Any]) -> bool:
    """The answer, or the one fenced block that it is, is JSON of this `type`, with these `keys` or this `length`."""
    blocks = fenced(answer)
    text = blocks[0][1] if len(blocks) == 1 and answer.strip().startswith("```") else answer
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if "keys" in wanted and (not isinstance(value, dict) or set(value) != set(wanted["keys"])):
        return False
    if "length" in wanted and (not isinstance(value, list) or not within(len(value), wanted["length"])):
        return False
    values = list(value.values()) if isinstance(value, dict) else value
    if "values" in wanted:
        kinds: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "boolean": (bool,)}
        kind = kinds[wanted["values"]]
        return isinstance(values, list) and all(isinstance(item, kind) for item in values)
    return True


def parsed(code: str) -> ast.Module | None:
    """The syntax tree of Python code, or None. Nothing in it runs."""
    if len(code) > MAX_CODE:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarnings about the model's code
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def python_block(answer: str, wanted: dict[str, Any]) -> bool:
    """One block fenced as ```python that parses and holds something; `defines`, `calls` and `has` (a syntax node) narrow it."""
    blocks = [content for language, content in fenced(answer) if language == "python"]
    tree = parsed(blocks[0]) if len(blocks) == 1 else None
    if tree is None or not tree.body:
        return False
    nodes = list(ast.walk(tree))
    defined = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    kinds = {type(n).__name__ for n in nodes}
    return (
        wanted.get("defines") in {None, *defined}
        and wanted.get("calls") in {None, *called}
        and wanted.get("has") in {None, *kinds}
    )


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words": words,
    "characters": characters,
    "sentences": sentences,
    "lines": lines,
    "paragraphs": paragraphs,
    "bullets": bullets,
    "numbered": numbered,
    "bold": bold,
    "headings": headings,
    "mentions": mentions,
    "mentions_any": mentions_any,
    "avoids": avoids,
    "times": times,
    "ordered": ordered,
    "starts": starts,
    "ends": ends,
    "case": case,
    "without": without,
    "one_of": one_of,
    "pattern": pattern,
    "wrapped": wrapped,
    "initial": initial,
    "sorted_lines": sorted_lines,
    "table": table,
    "json": json_value,
    "python": python_block,
}
