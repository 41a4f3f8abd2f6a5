"""Hostile and broken rows through the real fetch, mix and format: each is kept, or quarantined with its reason."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from abctune.core.files import RECORD_CHARACTERS
from tests import small
from tests.workspace import Workspace, make_workspace

KEPT = "kept"
DEEP = 100_000


def chat(*texts: object, roles: tuple[object, ...] = ("human", "gpt")) -> dict:
    return {
        "conversations": [
            {"from": roles[turn % len(roles)], "value": text} for turn, text in enumerate(texts)
        ]
    }


def line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# --- the fuzz: each maker returns a line of a file, and what must become of it -----------------------------


def any_text(rng: random.Random) -> str:
    """Characters of all planes, white space and signs; never half a surrogate pair or U+FFFD, which are not text."""
    ranges = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFC), (0x1F300, 0x1FAFF), (0x9, 0xD))
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))


def any_json(rng: random.Random, depth: int = 0) -> object:
    scalars = (None, True, -1, 1e308, float("inf"), float("nan"), 10**30, "", "\ud800", any_text(rng))
    if depth > 4 or rng.random() < 0.5:
        return rng.choice(scalars)
    if rng.random() < 0.5:
        return [any_json(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {any_text(rng): any_json(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def bytes_(rng: random.Random) -> tuple[bytes, str]:
    return b"\0" + rng.randbytes(rng.randint(1, 200)).replace(b"\n", b"\r"), "not JSON"


def cut_json(rng: random.Random) -> tuple[bytes, str]:
    whole = line(chat(any_text(rng), any_text(rng)))
    return whole[: rng.randint(1, len(whole) - 1)], "not JSON"


def json_value(rng: random.Random) -> tuple[bytes, str]:
    return line([any_json(rng)]), "not a JSON object"


def json_object(rng: random.Random) -> tuple[bytes, str]:
    return line({"": any_json(rng)}), "schema not recognised"


def text(rng: random.Random) -> tuple[bytes, str]:
    return line(chat(f"{rng.random()} {any_text(rng)}", f"so {any_text(rng)}")), KEPT


def other_schema(rng: random.Random) -> tuple[bytes, str]:
    turns = [{"role": "user", "content": f"{rng.random()}"}, {"role": "assistant", "content": any_text(rng)}]
    turns[1]["content"] += "."
    alpaca = {"instruction": f"{rng.random()}", "input": rng.choice((None, "", "x")), "output": "."}
    return line(rng.choice((alpaca, {"messages": turns}, {"conversations": turns}))), KEPT


def control(rng: random.Random) -> tuple[bytes, str]:
    texts = [f"{rng.random()}", any_text(rng) + "."]
    texts[rng.randint(0, 1)] += f"{rng.choice(small.CHATML_TOKENS)} {any_text(rng)}"
    return line(chat(*texts)), KEPT


def not_text(rng: random.Random) -> tuple[bytes, str]:
    content = rng.choice((None, 7, -0.5, True, [], ["a"], {}, {"text": "a"}, 10**30, float("nan")))
    is_number = isinstance(content, int | float) and content == content
    return line(chat("Hi", content)), f"content is not text{', but a number or true or false' * is_number}"


def half_pair(rng: random.Random) -> tuple[bytes, str]:
    half = chat("Hi", f"a{chr(rng.randint(0xD800, 0xDFFF))}b")
    no_utf8 = line(chat("Hi", "a")).replace(b'"a"', b'"a\xff"')
    return rng.choice((json.dumps(half).encode(), line(half), no_utf8)), "not UTF-8"


def nothing(rng: random.Random) -> tuple[bytes, str]:
    return line(chat("Hi", rng.choice(("", " ", "\n\t", "\u2003\u00a0", "\x1f")))), "empty message"


def nobody(rng: random.Random) -> tuple[bytes, str]:
    role = rng.choice((None, "", 3, ["gpt"], any_text(rng)))
    spelled = (
        json.dumps(role.strip(), ensure_ascii=False)[1:-1] if isinstance(role, str) else json.dumps(role)
    )
    shown = spelled[:40].encode(errors="backslashreplace").decode()
    named = shown if role is not None and spelled else "none given"
    return line(chat("Hi", "Yo", roles=("human", role))), f"unknown role: {named}"


def disorder(rng: random.Random) -> tuple[bytes, str]:
    return line(chat("a", "b", "c", roles=("human", "gpt", "system"))), "wrong turn order"


def strange_order(rng: random.Random) -> tuple[bytes, str]:
    roles = rng.choice((("gpt", "human"), ("human", "human", "gpt"), ("human", "gpt", "gpt")))
    return line(chat(f"{rng.random()}", "b", "c", roles=roles)), KEPT


def unread(rng: random.Random) -> tuple[bytes, str]:
    return line({**chat("Hi", f"{rng.random()}"), "images": [any_text(rng)]}), "unread field: images"


MAKERS: tuple[Callable[[random.Random], tuple[bytes, str]], ...] = (
    bytes_, cut_json, json_value, json_object, text, other_schema, control, not_text, half_pair, nothing, nobody,
    disorder, strange_order, unread,
)  # fmt: skip


def fuzz(rows: int, seed: int = 0) -> Iterator[tuple[bytes, str]]:
    rng = random.Random(seed)
    return (MAKERS[number % len(MAKERS)](rng) for number in range(rows))


# --- the stages -------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, small_model: Path) -> Workspace:
    project = make_workspace(tmp_path, small_model)
    project.set(
        sources__chat__schema="auto", format__max_quarantined=1.0, profiles__tiny__data__max_length=512
    )
    project.stage("fetch", "--model")
    return project


# Run a stage and write down the most memory it has held. From the kernel's status file: ru_maxrss begins with what the
# process that started this one held, which is pytest with all that it has loaded.
MEASURED = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(f"stages.{sys.argv[0]}", run_name="__main__", alter_sys=True)
finally:
    kib = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
    open("peak", "a").write(f"{kib / 2**20}\\n")
"""


def peak_gib(project: Workspace) -> float:
    return max(map(float, (project.root / "peak").read_text().split()))


def formatted(project: Workspace, lines: list[bytes]) -> dict:
    """fetch, mix and format these lines of a .jsonl file; return format's counts."""
    (project.root / "data/own/chat.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    project.set(variants__A__mix={"chat": len(lines)})
    for stage, key in (("fetch", "chat"), ("mix", "A"), ("format", "A")):
        project.run("python", "-c", MEASURED, stage, key)
    return json.loads((project.root / "data/formatted/A/summary.json").read_text())["sources"]["chat"]


def check_fuzz(project: Workspace, rows: int) -> dict:
    lines, fates = map(list, zip(*fuzz(rows), strict=True))

    counts = formatted(project, lines)
    expected = Counter(fates)
    assert counts["read"] == rows
    assert counts["kept"] == expected.pop(KEPT)
    assert counts["duplicate"] == 0
    assert counts["quarantined"] == dict(sorted(expected.items()))
    folder = project.root / "data/formatted/A"
    quarantined = pq.read_table(folder / "quarantine.parquet", columns=["row", "reason"]).to_pylist()
    assert {row["row"]: row["reason"] for row in quarantined} == {
        number: fate for number, fate in enumerate(fates) if fate != KEPT
    }
    assert pq.read_metadata(folder / "rows.parquet").num_rows == counts["kept"]
    return counts


def test_each_hostile_row_is_kept_or_quarantined_with_its_reason(project):
    check_fuzz(project, 3000)


@pytest.mark.faults
def test_100_000_hostile_rows(project):
    started = time.perf_counter()
    counts = check_fuzz(project, 100_000)
    print(
        f"\nhostile rows: {counts['read']:,} = {counts['kept']:,} kept + {sum(counts['quarantined'].values()):,}"
        f" quarantined for {len(counts['quarantined'])} reasons, no crash; {time.perf_counter() - started:.0f} s,"
        f" peak {peak_gib(project):.2f} GiB"
    )


def test_an_outsize_row_is_quarantined_and_memory_stays_bounded(project):
    megabyte = "x" * 2**20
    lines = [
        line(chat("Hi", megabyte * 10)),
        line(chat(*["Hi", "Yo"] * 5000)),
        b'{"conversations":' * DEEP + b"1" + b"}" * DEEP,
        b"[" * DEEP,
        b'{"conversations":' + b"[" * DEEP + b"]" * DEEP + b"}",
        *(
            b'{"conversations":' + b"[" * depth + b"NaN" + b"]" * depth + b"}"
            for depth in range(300, 1100, 20)
        ),
        line(chat("Hi", 10**400)),
        b"9" * 5000,
        line(chat("Hi", "Yo")),
        *[line(chat("Hi", megabyte))] * 100,
        b"\xff" * 40 * 2**20,
    ]
    counts = formatted(project, lines)
    assert counts["read"] == len(lines) == counts["kept"] + sum(counts["quarantined"].values())
    assert counts["kept"] == 1
    reasons = counts["quarantined"]
    assert reasons["too long"] == 103  # 10 MB, 2 of 100,000 levels, 100 of 1 MB, 40 MB
    assert reasons["too many messages"] == 1
    assert reasons["nested too deep"] >= 1
    kept = pq.read_table(project.root / "data/formatted/A/quarantine.parquet", columns=["record"])
    assert max(map(len, kept["record"].to_pylist())) == RECORD_CHARACTERS + 1
    assert peak_gib(project) < 2.0  # of 190 MB of rows, at 1,024 of them at a time
