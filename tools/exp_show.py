"""`dvc exp show --json` as rows: what each experiment changed, what every model scored, what that shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from abctune.core.errors import UserError
from abctune.core.params import BASE
from abctune.core.records import SummaryRecord
from abctune.study.rendering import yaml_value
from abctune.study.wording import listed
from tools.dotted import flat

WORKSPACE = "workspace"
METRICS_FILE = "metrics/summary.json"
OWN = re.compile(
    r"stages/.*|abctune/.*|(data|models)/own"
)  # dependencies that a person edits; the others follow


@dataclass(frozen=True)
class Row:
    """One revision, compared with its baseline: the commit that it started from."""

    name: str
    kind: str  # workspace, commit or experiment
    state: str  # "" when finished, else queued, running or failed
    changed: list[str]  # params as `-S` takes them, without `variants.`; code and own data
    losses: dict[str, float]  # model -> nll, base first
    moved: frozenset[str]  # models whose loss differs from the baseline's
    shown: str  # the differences that an interval shows, in words

    @property
    def other_test(self) -> bool:
        """Whether base scores differently than in the baseline: then the test rows are others."""
        return BASE in self.moved


def read_rows(on: str, *options: str) -> list[Row]:
    """All rows that `dvc exp show` has, with the losses on `on`: "overall", "general" or a source.

    Raises:
        UserError: no model was scored on `on`, or DVC cannot answer.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc exp show --json` failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    rows = rows_of(json.loads(done.stdout), on)
    if rows and not any(row.losses for row in rows if not row.state):
        raise UserError(
            f"{METRICS_FILE} has no losses on {on!r}; name `overall`, `general` or a source of params.yaml"
        )
    return rows


def rows_of(shown: list[dict[str, Any]], on: str) -> list[Row]:
    """The workspace, if it differs from the commit it is on; then each commit with its experiments, newest first."""
    rows: list[Row] = []
    commits = [entry for entry in shown if entry["rev"] != WORKSPACE]
    for entry in shown:
        if entry["rev"] == WORKSPACE:
            row = row_of(entry, commits[0] if commits else entry, "workspace", on)
            rows += [row] if row.changed or row.moved else []
            continue
        rows.append(row_of(entry, entry, "commit", on))
        rows += [row_of(run, entry, "experiment", on, state) for run, state in runs_of(entry)]
    return rows


def runs_of(commit: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """A commit's experiments, newest first, each with its state."""
    for experiment in commit.get("experiments") or []:
        state = (experiment.get("executor") or {}).get("state") or ""
        for revision in experiment["revs"] or []:
            yield {**revision, "name": revision["name"] or experiment["name"]}, unfinished(state)


def unfinished(state: str) -> str:
    """What the table says about a state: nothing for a run that ended well."""
    return "" if state == "success" else state.lower()


def row_of(entry: dict[str, Any], baseline: dict[str, Any], kind: str, on: str, state: str = "") -> Row:
    """Compare one revision, as `dvc exp show --json` has it, with its baseline."""
    losses, before = losses_of(entry, on), losses_of(baseline, on)
    if not state and kind == "experiment" and not losses:
        state = "no results"
    return Row(
        name=entry["name"] or entry["rev"][: 7 if entry["rev"] != WORKSPACE else None],
        kind=kind,
        state=state,
        changed=[*changed_params(entry, baseline), *changed_files(entry, baseline)],
        losses={} if state else losses,
        moved=frozenset(name for name in losses if losses[name] != before.get(name)),
        shown="" if state else shown_differences(summary_of(entry)),
    )


def params_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The contents of params.yaml at this revision; empty where there is none."""
    files = (entry.get("data") or {}).get("params") or {}
    return (files.get("params.yaml") or {}).get("data") or {}


def losses_of(entry: dict[str, Any], on: str) -> dict[str, float]:
    """Loss by model, in nats per supervised token, on `on`: overall, general or a source."""
    return {name: model.loss[on] for name, model in summary_of(entry).models.items() if on in model.loss}


def summary_of(entry: dict[str, Any]) -> SummaryRecord:
    """The revision's summary.json; an empty one where it has none, or one of an older version."""
    files = (entry.get("data") or {}).get("metrics") or {}
    try:
        return SummaryRecord.from_json((files.get(METRICS_FILE) or {}).get("data") or {})
    except ValueError:
        return SummaryRecord(models={}, verdict={})


def changed_params(entry: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """Changed params such as "B.train.learning_rate=0.001"; a new variant as "+D chat=15000", a removed one as "-D"."""
    params, before = params_of(entry), params_of(baseline)
    variants, earlier = params.get("variants", {}), before.get("variants", {})
    if not params:
        return []
    changes = [f"-{name}" for name in earlier if name not in variants]
    for name in (name for name in variants if name not in earlier):
        changes.append(f"+{name} " + " ".join(f"{source}={n}" for source, n in variants[name]["mix"].items()))
    new, old = flat(params), flat(before)
    ignored = tuple(f"variants.{name}." for name in variants.keys() ^ earlier.keys())
    for key in {**old, **new}:
        if new.get(key) != old.get(key) and not key.startswith(ignored):
            value = value_of(new[key]) if key in new else "(gone)"
            changes.append(f"{key.removeprefix('variants.')}={value}")
    return changes


def value_of(value: Any) -> str:
    """A param's value as `-S` takes it."""
    return f"{value:g}" if isinstance(value, float) else yaml_value(value)


def changed_files(entry: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """Code and own data that differ from the baseline's: the params alone do not explain such a row."""
    now, before = ((one.get("data") or {}).get("deps") or {} for one in (entry, baseline))
    return [
        f"[{path}]"
        for path, dep in sorted(now.items())
        if OWN.fullmatch(path) and path in before and dep["hash"] not in (None, before[path]["hash"])
    ]


def shown_differences(summary: SummaryRecord) -> str:
    """The pairs with a verdict overall, as "A, B better than base; C better than B"."""
    words = {(name, BASE): model.vs_base for name, model in summary.models.items() if model.vs_base}
    words |= {
        (model, reference): summary.verdict[f"{model}_vs_{reference}"]
        for reference in summary.models
        for model in summary.models
        if f"{model}_vs_{reference}" in summary.verdict
    }
    groups: dict[tuple[str, str], list[str]] = {}
    for (model, reference), short in words.items():
        outcome = short.split(" ")[0]
        if outcome in ("better", "worse"):
            groups.setdefault((outcome, reference), []).append(model)
    return "; ".join(
        f"{listed(names)} {outcome} than {reference}" for (outcome, reference), names in groups.items()
    )
