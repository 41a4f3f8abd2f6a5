"""Checks on a source's own test rows: each kind, and answers that are meant to break it."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter

from abctune.core.errors import UserError
from abctune.core.params import OwnCheck, load_params
from abctune.llm.inference import Answer
from stages.eval import isolate
from stages.eval.own_checks import MAX_ANSWER, Reference, check_answer
from stages.eval.own_tasks import line_of, own_tasks
from stages.eval.sandbox import run

DEEP = "[" * 19_000
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
CHOICE = {"kind": "choice", "labels": ["positive", "very positive", "negative"]}
JSON = {"kind": "json", "fields": {"name": "string", "age": "integer"}, "equal": ["name"]}
SCHEMA = {
    "kind": "json",
    "schema": {
        "properties": {"tags": {"$ref": "#/$defs/tags"}},
        "required": ["name"],
        "$defs": {"tags": {"type": "array", "items": {"type": "string"}}},
    },
}
ANN = '{"name": "Ann", "age": 30}'


def passes(check: dict, reference: str, answer: str, calls: tuple = ()) -> bool:
    typed = TypeAdapter(OwnCheck).validate_python(check)
    return all(check_answer(typed, Reference(reference, calls), answer).values())


@pytest.mark.parametrize(
    ("check", "reference", "answer", "held"),
    [
        ({"kind": "exact"}, "Paris", " Paris\n", True),
        ({"kind": "exact"}, "Paris", "paris", False),
        ({"kind": "exact"}, "Paris", "", False),
        ({"kind": "normalized"}, "New York.", "new  york", True),
        ({"kind": "normalized"}, "Straße", "STRASSE!", True),
        ({"kind": "normalized"}, "Paris", "London", False),
        ({"kind": "normalized"}, "?", "!", False),
        ({"kind": "normalized"}, "हिन्दी", "हनद", False),
        ({"kind": "regex", "pattern": r"^\d{4}$"}, "", "1984", True),
        ({"kind": "regex", "pattern": r"^\d{4}$"}, "", "in 1984", False),
        (CHOICE, "positive", "Positive.", True),
        (CHOICE, "very positive", "It is very positive", True),
        (CHOICE, "positive", "very positive", False),
        (CHOICE, "positive", "positive or negative", False),
        ({"kind": "choice", "labels": ["no", "no idea"]}, "no", "No idea!", False),
        (CHOICE, "positive", "postpositive", False),
        (CHOICE, "positive", "", False),
        (JSON, ANN, '```json\n{"age": 4, "name": "Ann"}\n```', True),
        (JSON, ANN, '{"name": "Bob", "age": 30}', False),
        (JSON, ANN, '{"name": "Ann", "age": true}', False),
        (JSON, ANN, '{"name": "Ann", "age": NaN}', False),
        (JSON, ANN, "[1]", False),
        (JSON, ANN, DEEP, False),
        (JSON, ANN, '{"a":' * 3_000, False),
        (SCHEMA, ANN, ANN, True),
        (SCHEMA, ANN, '{"name": "Ann", "age": 30, "tags": [1]}', False),
        (SCHEMA, ANN, '{"age": 30}', False),
        ({"kind": "python"}, "", "```python\nx = 1\n```", True),
        ({"kind": "python"}, "", "x = (", False),
        ({"kind": "python"}, "", "", False),
        ({"kind": "python"}, "", "(" * 9_000, False),
        ({"kind": "exact"}, "a" * (MAX_ANSWER + 1), "a" * (MAX_ANSWER + 1), False),
    ],
)
def test_an_answer_is_judged_as_a_person_would(check, reference, answer, held):
    assert passes(check, reference, answer) is held


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>", True),
        ('{"name": "weather", "parameters": {"days": 2, "city": "Paris"}}', True),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}', True),
        ('{"name": "weather", "arguments": {"city": "Paris", "days": true}}', False),
        ('{"name": "time", "arguments": {"city": "Paris", "days": 2}}', False),
        (json.dumps(CALL) * 2, False),
        ("<tool_call><function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>"
         "</function></tool_call>", True),
        ('<function=weather>{"city": "Paris", "days": 2}</function>', True),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
         "<arg_value>2</arg_value>\n</tool_call>", True),
        ('<invoke name="weather"><parameter name="city">Paris</parameter><parameter name="days" string="false">2'
         "</parameter></invoke>", True),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}', True),
        ('[weather(city="Paris", days=2)]', True),
        ('weather(days=2, city="Paris")', True),
        ("<function=weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function>", False),
        ("<function=time><parameter=city>Paris</parameter><parameter=days>2</parameter></function>", False),
        ("<function=weather><parameter=city>Paris</parameter></function>", False),
        ('[weather(city="Paris", days=2), weather(city="Paris", days=2)]', False),
        ('[weather("Paris", 2)]', False),
        ("[weather(city=open('/etc/passwd').read(), days=2)]", False),
        ("<function=weather>" * 1_000, False),
        ("[weather(" * 2_000, False),
        ("It is sunny in Paris.", False),
        ("{" * 19_000, False),
        ("", False),
    ],
)  # fmt: skip
def test_a_tool_call_needs_its_name_and_arguments(answer, held):
    assert passes({"kind": "tool_call"}, "", answer, (CALL,)) is held


def test_an_argument_between_tags_is_of_the_type_that_is_wanted():
    wanted = {"name": "f", "arguments": {"text": "2", "n": 2, "ok": True, "all": [1, "a"]}}
    answer = (
        "<function=f><parameter=text>2</parameter><parameter=n>2</parameter><parameter=ok>True</parameter>"
        '<parameter=all>[1, "a"]</parameter></function>'
    )
    assert passes({"kind": "tool_call"}, "", answer, (wanted,))
    assert not passes({"kind": "tool_call"}, "", answer.replace("True", "1"), (wanted,))


def test_a_pattern_that_would_never_end_is_given_up():
    started = time.perf_counter()
    assert not passes({"kind": "regex", "pattern": "(a|aa|a?)+(b|c)+$"}, "", "a" * 5_000)
    assert time.perf_counter() - started < 20  # a bound on the harm, not a benchmark


@pytest.mark.parametrize(
    ("code", "held"),
    [
        ("print(1)", True),
        ("raise SystemExit(3)", False),
        ("while True: pass", False),
        ("import time; time.sleep(60)", False),
        ("x = bytearray(10**10)", False),
        ("open('big', 'wb').write(bytes(64 * 2**20))", False),
        ("import os, sys; sys.exit('SECRET_OF_TESTS' in os.environ)", True),
        ("import os; assert os.listdir('.') == ['answer.py']", True),
        ("import sys; assert sys.stdin.read() == ''", True),
        ("import tempfile; tempfile.NamedTemporaryFile().write(b'x')", True),
    ],
)
def test_a_command_runs_within_its_limits(code, held, monkeypatch, isolating):
    monkeypatch.setenv("SECRET_OF_TESTS", "1")
    assert accepts(["python", "answer.py"], {"answer.py": code}, seconds=5.0 if held else 0.5) is held


@pytest.fixture(scope="module")
def isolating():
    """A machine that can isolate a command; elsewhere only the refusal is tested."""
    try:
        run(["true"], {}, 5.0, 256)
    except UserError as error:
        if "cannot isolate" not in str(error):
            raise
        pytest.skip(str(error))


def accepts(command: list[str], files: dict[str, str], seconds: float = 5.0, isolated: bool = True) -> bool:
    return all(run(command, files, seconds, 256, isolated).values())


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "within processes"),
        ("import os, time\nfor _ in range(9): os.fork() or (b'1' * 2**26, time.sleep(9))\ntime.sleep(9)", "within memory_mib"),
        ("x = bytearray(10**10)", "exit status 0"),
        ("import sys\nwhile True: sys.stdout.write('x' * 2**16); sys.stderr.write('x' * 2**16)", "within seconds"),
        ("for i in range(99): open(str(i), 'wb').write(bytes(2**22))", "exit status 0"),
    ],
    ids=["fork bomb", "memory of many", "memory of one", "endless output", "disk"],
)  # fmt: skip
def test_an_attack_on_the_machine_is_stopped_and_told(code, broken, isolating):
    held = run(["python", "answer.py"], {"answer.py": code}, 0.7 if "seconds" in broken else 5.0, 256)
    assert held[broken] is False and held["exit status 0"] is False


def test_a_command_reaches_nothing_but_its_folder(tmp_path, isolating):
    """Every way out fails, while the same code gets through without isolation."""
    (tmp_path / "private").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        ways = {
            "read": f"open({str(tmp_path / 'private')!r}).read()",
            "the project": f"open({str(Path.cwd() / 'params.yaml')!r}).read()",
            "write": f"open({str(tmp_path / 'written')!r}, 'w').write('x')",
            "write to Python": "import sys; open(sys.prefix + '/written.txt', 'w').write('x')",
            "network": f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)",
            "socket": f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
            "environment": f"open('/proc/{os.getpid()}/environ').read()",
            "signal": f"import os; os.kill({os.getpid()}, 0)",
        }
        try:
            through = [name for name, code in ways.items() if accepts(["python", "-c", code], {})]
            open_ways = [name for name in ways if accepts(["python", "-c", ways[name]], {}, isolated=False)]
        finally:
            (Path(sys.prefix) / "written.txt").unlink(missing_ok=True)
    assert through == []
    assert open_ways == list(ways)


def test_what_a_command_leaves_running_ends_with_it(isolating):
    mark = f"300.{os.getpid()}"
    leave = (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: os.execvp('sleep', ['sleep',"
        f" '{mark}'])\n  os._exit(0)\ntime.sleep(0.2)"
    )
    assert accepts(["python", "-c", leave], {})
    until = time.monotonic() + 60
    while any(mark in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < until


def test_a_machine_that_cannot_isolate_says_so_and_what_helps(monkeypatch, tmp_path):
    cannot = (
        Path(isolate.__file__)
        .read_text()
        .replace("NEW_PIDS, NEW_NETWORK = 0x20000,", "NEW_PIDS, NEW_NETWORK = 0x80,")
    )
    (tmp_path / "isolate.py").write_text(cannot)
    monkeypatch.setattr(isolate, "__file__", str(tmp_path / "isolate.py"))
    with pytest.raises(UserError, match=r"cannot isolate the command \(.+\)\. .*`isolated: false`"):
        accepts(["python", "-c", ""], {})
    assert accepts(["python", "-c", ""], {}, isolated=False)


def test_a_command_that_is_missing_is_named(isolating):
    with pytest.raises(UserError, match="no command 'no-such-program'"):
        accepts(["no-such-program"], {})


def test_a_command_sees_the_code_and_the_reference(isolating):
    judge = "assert open('answer.py').read() == 'x = 1\\n' and open('reference.txt').read() == 'y'"
    assert passes({"kind": "command", "command": ["python", "-c", judge]}, "y", "```python\nx = 1\n```")


def row(i: int, reply: str, group: str = "", source: str = "mine", extra: str | None = None) -> dict:
    turns = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": reply}]
    return {"id": str(i), "group": group or f"g{i}", "source": source, "messages": turns, "extra": extra}


def test_rows_are_of_the_source_one_of_a_group_and_bounded():
    check = TypeAdapter(OwnCheck).validate_python({"kind": "exact", "rows": 3})
    rows = [row(i, "a", group=f"g{i // 2}") for i in range(20)] + [row(99, "b", source="other")]
    tasks = own_tasks("mine", check, rows)
    assert len(tasks) == 3
    assert len({int(task.id) // 2 for task in tasks}) == 3
    assert tasks == own_tasks("mine", check, rows[::-1])
    assert all(task.messages[-1]["role"] == "user" for task in tasks)


@pytest.mark.parametrize("thoughts", ["<think>\nno, yes\n</think>\n\n", "[THINK]no, yes[/THINK]", ""])
def test_a_reference_is_the_reply_without_its_thoughts(thoughts):
    check = TypeAdapter(OwnCheck).validate_python({"kind": "exact"})
    (task,) = own_tasks("mine", check, [row(1, f"{thoughts}positive")])
    assert task.reference.text == "positive"


def test_rows_whose_reply_is_no_label_are_left_out_and_none_at_all_is_an_error():
    check = TypeAdapter(OwnCheck).validate_python(CHOICE)
    assert [task.id for task in own_tasks("mine", check, [row(1, "maybe"), row(2, "negative")])] == ["2"]
    with pytest.raises(UserError, match=r"evaluation.checks.mine: none of its test rows .*labels"):
        own_tasks("mine", check, [row(1, "maybe")])


def test_tool_calls_of_the_held_out_reply_are_the_reference():
    check = TypeAdapter(OwnCheck).validate_python({"kind": "tool_call"})
    called = {"tool_calls": [{"type": "function", "function": CALL}]}
    extra = json.dumps(
        {"tools": [{"type": "function", "function": {"name": "weather"}}], "messages": [{}, called]}
    )
    (task,) = own_tasks("mine", check, [row(1, "", extra=extra), row(2, "no call")])
    assert task.reference.calls == (CALL,)
    assert task.tools is not None
    (task,) = own_tasks("mine", check, [row(3, f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>")])
    assert task.reference.calls == (CALL,)


def test_every_reply_with_tool_calls_is_asked_for_and_a_conversation_passes_when_all_are_right():
    check = TypeAdapter(OwnCheck).validate_python({"kind": "tool_call"})
    calls = [CALL, {"name": "time", "arguments": {}}, {"name": "weather", "arguments": {}}]
    turns = [
        {"role": "user", "content": "q"},
        *[{"role": "assistant", "content": ""}, {"role": "tool", "content": "3"}] * 3,
        {"role": "assistant", "content": "3 degrees"},
    ]
    more = [{"tool_calls": [{"type": "function", "function": call}]} for call in calls]
    by_turn = [{}, more[0], {}, more[1], {}, more[2], {}, {}]
    supervised = [False, True, False, True, False, False, False, True]  # the third call is marked as wrong
    extra = json.dumps({"tools": None, "messages": by_turn, "supervised": supervised})
    whole = {"id": "a", "group": "g", "source": "mine", "messages": turns, "extra": extra}
    # The same from a template with an example per reply.
    each = [
        whole
        | {"id": f"a-{turn}", "messages": turns[: turn + 1]}
        | {
            "extra": json.dumps(
                {"messages": by_turn[: turn + 1], "supervised": [n == turn for n in range(turn + 1)]}
            )
        }
        for turn in (7, 1, 3)
    ]
    for rows in ([whole], each):
        tasks = own_tasks("mine", check, rows)
        assert [task.reference.calls for task in tasks] == [(CALL,), (calls[1],)]
        assert [len(task.messages) for task in tasks] == [1, 3]
        right = [Answer(json.dumps(call), [1, 2], True, json.dumps(call)) for call in calls[:2]]
        line = line_of(check, tasks, right)
        assert line.passed and line.n_tokens == 4
        assert line.expected == "\n\n".join(map(json.dumps, calls[:2]))
        line = line_of(check, tasks, [right[0], Answer("no", [1], True, "no")])
        assert line.checks == {"calls": False, "name": False, "arguments": False}
    last = own_tasks("mine", TypeAdapter(OwnCheck).validate_python({"kind": "exact"}), each)
    assert [task.reference.text for task in last] == ["3 degrees"]


def test_a_reply_that_the_data_mark_as_not_to_be_learned_is_no_reference():
    marked = row(1, "wrong", extra=json.dumps({"supervised": [False, False]}))
    tasks = own_tasks("mine", TypeAdapter(OwnCheck).validate_python({"kind": "exact"}), [marked, row(2, "x")])
    assert [task.id for task in tasks] == ["2"]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"nowhere": {"kind": "exact"}}, "evaluation.checks.nowhere: the test rows are those of mix C"),
        ({"chat": {"kind": "exact", "row": 3}}, "evaluation.checks.chat.row: unknown key"),
        ({"chat": {"kind": "choice", "labels": ["one"]}}, "evaluation.checks.chat.labels"),
        ({"chat": {"kind": "regex", "pattern": "("}}, "is no regular expression"),
        ({"chat": {"kind": "taste"}}, "evaluation.checks.chat"),
    ],
)
def test_a_check_that_cannot_be_is_refused_before_any_work(workspace, check, message):
    workspace.set(evaluation__checks=check)
    with pytest.raises(UserError, match=message):
        load_params(workspace.root / "params.yaml")


def test_eval_asks_the_sources_own_rows(ready_to_train):
    """The whole path of one model: base answers rows of chat, and every answer is checked."""
    ready_to_train.set(evaluation__checks={"chat": {"kind": "normalized", "rows": 4, "max_new_tokens": 5}})
    ready_to_train.stage("eval", "base")
    lines = (ready_to_train.root / "metrics/eval/base/tasks.jsonl").read_text().splitlines()
    own = [task for task in map(json.loads, lines) if task.get("source") == "chat"]
    assert len(own) == 4 and {task["kind"] for task in own} == {"normalized"}
    assert all(task["expected"] and task["n_tokens"] <= 5 for task in own)
    record = json.loads((ready_to_train.root / "metrics/eval/base/metrics.json").read_text())
    assert record["own_checks"]["chat"]["n"] == 4


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"type is no JSON Schema"):
        TypeAdapter(OwnCheck).validate_python({"kind": "json", "schema": {"type": "objct"}})
    elsewhere = {"properties": {"a": {"$ref": "https://example.invalid/a.json"}}}
    with pytest.raises(ValueError, match="nothing is downloaded"):
        TypeAdapter(OwnCheck).validate_python({"kind": "json", "schema": elsewhere})
