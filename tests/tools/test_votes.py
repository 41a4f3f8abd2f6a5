"""Votes of the chat's Compare tab reach the report, and only those that mean something there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import abctune
from abctune.study.votes import VOTES
from stages.plot.__main__ import main as plot
from tests.plot.fake_run import write_run
from tools.votes import CAST
from tools.votes import main as add_votes


def cast(prefer: str | None, n: int = 1, **changed: object) -> list[str]:
    """Lines as the chat writes them (app/votes.py)."""
    vote = {
        "models": ["B", "base"],
        "adapters": {"B": "the hash", "base": None},
        "prompt": "a private question",
        "answers": ["x", "y"],
        "sampling": {"temperature": 0.7},
        "preferred": prefer,
        "blind": True,
    } | changed
    return [json.dumps({"time": f"2026-01-01T00:00:{i:02}", **vote}) for i in range(n)]


def test_blind_votes_on_todays_adapters_stand_in_the_report_next_to_the_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, {})
    for name in "ABC":
        folder = Path("models") / name
        folder.mkdir(parents=True)
        (folder / "training.json").write_bytes(Path("metrics/collected", name, "training.json").read_bytes())
        (folder / "adapter_model.safetensors").write_bytes(name.encode())
    monkeypatch.setattr("tools.votes.sha256_of", lambda path: "the hash")
    with pytest.raises(SystemExit):
        add_votes([Path("nothing/votes.jsonl")])
    assert "nothing/votes.jsonl not found; the chat's Compare tab" in capsys.readouterr().err
    CAST.parent.mkdir(parents=True)
    lines = [
        *cast("B", 40),
        *cast(None, 2),
        *cast("B", blind=False),
        *cast("B", adapters={"B": "another", "base": None}),
        *cast("B", sampling={"adapter_strength": 0.5}),
        '{"cut sho',
    ]
    CAST.write_text("\n".join(lines))
    for added in (42, 0):  # a second time adds nothing
        add_votes(None)
        said = capsys.readouterr().out
        assert f"{added} votes added, 42 in all" in said
        for reason in ("names in sight", "other adapters", "another strength", "damaged lines"):
            assert reason in said
    assert "private" not in VOTES.read_text()
    plot()
    report, headlines = (
        Path("plots/report.html").read_text(),
        json.loads(Path("metrics/study.json").read_text()),
    )
    assert "What people prefer" in report and "42 blind votes" in report
    assert "People: this adapter of B is preferred to base in 9" in report
    assert any("B is preferred to base" in line for line in headlines["headlines"])
    assert headlines["abctune"] == abctune.__version__
    assert "| B – base | 42 of 42 | 0.9" in Path("plots/report.md").read_text()
