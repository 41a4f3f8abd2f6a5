"""docs/scale.md's example of a folder of Parquet files that another engine wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq

PAGE = Path(__file__).parents[2] / "docs/scale.md"


def test_the_pages_example_is_read_as_a_source_with_a_hash_for_each_file(workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})  # the page's own, which reads and writes data/own
    workspace.set(profiles__tiny__sources__chat={"origin": "local", "path": "data/own/cleaned"})
    workspace.stage("fetch", "chat")
    source = json.loads((workspace.root / "data/raw/chat/source.json").read_text())
    assert len(source["files"]) == 3 and all("sha256" in file for file in source["files"].values())
    rows = pq.read_table(workspace.root / "data/raw/chat/rows.parquet", columns=["record"])["record"]
    own = (workspace.root / "data/own/chat.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row)["conversations"] for row in rows.to_pylist()]
    assert found == [json.loads(line)["conversations"] for line in own]
