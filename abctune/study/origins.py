"""Where the numbers come from: commit, changed params, data revisions, versions, hardware."""

from __future__ import annotations

import subprocess
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from abctune.core.params import PARAMS_FILE
from abctune.study.inputs import Study

CODE = ("stages", "params.yaml", "dvc.yaml", "requirements.txt")


def git(*arguments: str) -> str | None:
    """Git's answer, or None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def commit() -> dict[str, Any] | None:
    """The commit the stage ran on top of, and which code or params files differed from it."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    changed = git("status", "--porcelain", "--", *CODE) or ""
    return {"hash": head.strip(), "changed": [line[3:] for line in changed.splitlines()]}


def params_diff() -> list[tuple[str, Any, Any]] | None:
    """(key, committed value, this run's value) for every params.yaml key that differs; None without a commit."""
    committed = git("show", f"HEAD:./{PARAMS_FILE}")
    if committed is None:
        return None
    try:
        yaml = YAML(typ="safe", pure=True)
        before, now = flat(yaml.load(committed)), flat(yaml.load(PARAMS_FILE.read_text(encoding="utf-8")))
    except (YAMLError, OSError):
        return None
    return [
        (key, before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)
    ]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def data_origins(study: Study) -> list[dict[str, Any]]:
    """One line per source and for the base model: where it came from, exactly, and its hashes."""
    base = next(iter(study.trained.values())).record.get("base_model")
    lines = []
    for name, record in {**study.raw, "base model": base or {}}.items():
        if record:
            what = (
                record.get("repo")
                or record.get("package")
                or record.get("path")
                or record.get("origin", "unknown")
            )
            lines.append(
                {
                    "name": name,
                    "what": what,
                    "version": record.get("revision") or record.get("version") or "",
                    "license": record.get("license", ""),
                    "rows": record.get("rows"),
                    "sha256": hashes_of(record),
                }
            )
    return lines


def hashes_of(record: dict[str, Any]) -> dict[str, str]:
    """File -> SHA-256, from a source.json's `files`, or its `sha256` where that is all there is."""
    files = record.get("files")
    if isinstance(files, dict):
        return {name: entry["sha256"] for name, entry in files.items() if "sha256" in entry}
    hashes = record.get("sha256") or {}
    return hashes if isinstance(hashes, dict) else {"": str(hashes)}


def made_with(study: Study) -> dict[str, dict[str, Any]]:
    """Versions and hardware per variant, keyed "torch", "gpu", ...: a cached variant may be older than the rest."""
    found: dict[str, dict[str, Any]] = {}
    for variant, trained in study.trained.items():
        for key, value in {**trained.record["versions"], **trained.record["hardware"]}.items():
            if value is not None:
                found.setdefault(key, {})[variant] = value
    return found
