"""A file in data/own or models/own makes out of date what names it, and nothing else."""

from __future__ import annotations

import re

FETCH = ("fetch-model", "fetch-general", "fetch@chat", "fetch@instruct")


def ran(workspace) -> set[str]:
    """Bring all sources and the model up to date; the stages whose command ran for it."""
    return set(re.findall(r"Running stage '([^']+)'", workspace.run("dvc", "repro", *FETCH).stdout))


def test_a_file_of_ones_own_makes_only_what_names_it_out_of_date(workspace):
    workspace.set(profiles__tiny__sources__instruct__path="data/own/many/*.jsonl")
    own = workspace.root / "data/own"
    (own / "many").mkdir()
    (own / "instruct.jsonl").rename(own / "many/1.jsonl")
    assert ran(workspace) == {"own-data", "own-model", *FETCH}
    assert ran(workspace) == set()

    (own / "unused.csv").write_text("a,b\n1,2\n")
    (workspace.root / "models/own/small/notes.txt").write_text("mine")
    assert ran(workspace) == {"own-data", "own-model"}

    (own / "many/2.jsonl").write_bytes((own / "many/1.jsonl").read_bytes())
    assert ran(workspace) == {"own-data", "fetch@instruct"}
    (own / "chat.jsonl").write_text("".join((own / "chat.jsonl").read_text().splitlines(True)[1:]))
    assert ran(workspace) == {"own-data", "fetch@chat"}

    (workspace.root / "models/own/small/generation_config.json").write_text('{"do_sample": false}')
    assert ran(workspace) == {"own-model", "fetch-model"}
    (workspace.root / "models/own/mine.jinja").write_text("{{ messages }}")
    assert ran(workspace) == {"own-model"}


def test_a_path_that_names_nothing_is_refused_by_its_key(workspace):
    workspace.set(profiles__tiny__sources__chat__path="data/own/absent.jsonl")
    failed = workspace.run("dvc", "repro", "fetch@chat", check=False)
    assert failed.returncode
    assert "params.yaml: profiles.tiny.sources.chat.path: data/own/absent.jsonl not found" in failed.stderr
