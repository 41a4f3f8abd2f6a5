"""Say what pip-audit found (`make audit`), and how much of the lock it could look at: it passes what it skips.

    python .ci/audit.py FOUND.json

Exit status: 0 nothing known, 1 a vulnerability, 2 not all packages could be looked up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def judge(found: dict) -> tuple[list[str], int]:
    """What to print, and the exit status, for pip-audit's JSON."""
    packages = found["dependencies"]
    looked_up = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in looked_up
        for hole in package["vulns"]
    ]
    holes = len(lines)
    if not looked_up:
        return ["the advisory data cannot be reached from here: nothing was audited"], 2
    lines.append(f"{len(looked_up)} of {len(packages)} packages looked up, {holes} known vulnerabilities")
    if skipped := [package["name"] for package in packages if "skip_reason" in package]:
        lines.append(f"not audited: {', '.join(skipped)}")
    return lines, 1 if holes else 2 if skipped else 0


def main(path: Path) -> int:
    """Print what pip-audit found; return the exit status."""
    found = json.loads(path.read_text()) if path.exists() and path.stat().st_size else {"dependencies": []}
    lines, status = judge(found)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
