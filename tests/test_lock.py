"""requirements.txt is what `make lock` makes of pyproject.toml, as far as can be told without a network; one version."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import abctune

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.txt").read_text()


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def pins() -> dict[str, list[str]]:
    """Versions by package; several where they differ by Python version."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", LOCK, re.M):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_every_declared_dependency_is_pinned_to_a_version_it_allows():
    for name, requirement in declared().items():
        assert name in pins(), f"{name} is in pyproject.toml but not in requirements.txt; run `make lock`"
        for version in pins()[name]:
            assert requirement.specifier.contains(version), (
                f"{name}=={version} is not {requirement}; run `make lock`"
            )


def test_nothing_is_pinned_as_ours_that_pyproject_does_not_declare():
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK)
    ours = {
        canonicalize_name(re.split(r"[=\[ ]", block)[0])
        for block in blocks
        if re.search(r"# .*abctune \(pyproject.toml|#   abctune", block)
    }
    assert ours == set(declared()), (
        "requirements.txt was compiled from another pyproject.toml; run `make lock`"
    )


def test_every_pin_has_hashes_and_no_address_is_named():
    for block in re.split(r"\n(?=[A-Za-z0-9])", LOCK):
        if "==" in block.splitlines()[0]:
            assert "--hash=sha256:" in block, block.splitlines()[0]
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", LOCK)


def test_changelog_package_and_command_line_name_one_version():
    """While a version ends in .dev0, its changes stand under "Unreleased"; once released, under its own heading."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "abctune.__version__"}
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [Version(heading) for heading in headings if heading != "Unreleased"]
    version = Version(abctune.__version__)
    assert released == sorted(released, reverse=True)
    if version.is_devrelease:
        assert headings[0] == "Unreleased" and version > released[0]
    else:
        assert version == released[0]
    shown = subprocess.run(
        [sys.executable, "-m", "app", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.stdout == f"abctune {abctune.__version__}\n"
