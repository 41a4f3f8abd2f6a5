"""Origin `hub`: files of a Hugging Face repository at one commit, resumed where cut and checked by hash.

The client's own `hf_hub_download` deletes what it has of a file when it fails (huggingface_hub 1.33), so that a
6 GB model starts over, keeps a second copy of it, and does not check hashes. So the client finds out what is
there, and the bytes are taken from it here.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the client is imported

import httpx
from huggingface_hub import DatasetInfo, HfApi, ModelInfo, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

from abctune.core.errors import UserError
from abctune.core.params import HubModel, HubSource
from abctune.core.provenance import sha256_of
from stages.fetch import cache
from stages.fetch.hub_files import named_files, split_files
from stages.fetch.model_files import INDEX, needed_files, require_usable
from stages.fetch.records import DataFile, Record, check_suffix, read_files
from stages.fetch.retry import Transient, with_retries
from stages.fetch.splits import CARD

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds without a byte; a download may take as long as it needs
NO_NETWORK = (
    "the model hub cannot be reached; check the network (or HTTPS_PROXY, HF_ENDPOINT) and run again."
    " Profile tiny needs no hub: `dvc exp run -S profile=tiny`"
)

T = TypeVar("T")


def source(origin: HubSource, key: str, scratch: Path) -> tuple[Iterator[Record], dict[str, Any]]:
    """The records of a dataset repository's files, and what `source.json` says about them.

    A file is downloaded when its first record is asked for, so that `first_rows` of a repository that no disk holds can
    be had; `files` of what is returned is complete once the records have been read.

    Raises:
        UserError: no network, no access, no such repository, revision or file, a wrong hash.
    """
    for name in origin.files:
        if not set("*?[") & set(name):  # what a glob fits is known when the files are listed
            check_suffix(name, f"params.yaml: {key}.files")
    repository = Repository(origin, "dataset", key)
    listed = repository.files()
    names = wanted_files(origin, repository, listed, key, scratch)
    for name in names:
        check_suffix(name, f"params.yaml: {key}.{'split' if origin.split else 'files'}")
    files: dict[str, dict[str, Any]] = {}

    def downloaded() -> Iterator[DataFile]:
        """Each file in turn, all at the same path: it is read before the next one replaces it."""
        target = scratch / "data"
        for name in names:
            files.update(repository.fetch({target: listed[name]}))
            yield DataFile(target, name)

    records = read_files(downloaded(), origin.group_by, first_rows=origin.first_rows)
    about = {name: value for name in ("config", "split", "first_rows") if (value := getattr(origin, name))}
    return records, {"repo": origin.repo, "revision": origin.revision, **about, "files": files}


def wanted_files(
    origin: HubSource, repository: Repository, listed: dict[str, HubFile], key: str, scratch: Path
) -> list[str]:
    """The names of the files that a source is made of.

    Raises:
        UserError: the repository has no such file, config or split.
    """
    if not origin.split:
        return named_files(origin, listed, key)
    card = scratch / "card" if CARD in listed else None
    if card:
        repository.fetch({card: listed[CARD]})
    return split_files(origin, listed, card, scratch / "names", key)


def model(origin: HubModel, key: str, folder: Path) -> dict[str, Any]:
    """Download what `from_pretrained` needs into `folder`; return what `source.json` says about it.

    Raises:
        UserError: as for `source`, needed_files or require_usable.
    """
    repository = Repository(origin, "model", key)
    listed = repository.files()
    index = folder / INDEX if INDEX in listed else None
    if index:
        repository.fetch({index: listed[INDEX]})
    where = f"{origin.repo} at revision {origin.revision}"
    names = needed_files(listed, where, f"{key}.repo", index)
    weights = [name for name in names if name.endswith(".safetensors")]
    small = [name for name in names if name not in weights]
    files = repository.fetch({folder / name: listed[name] for name in small})
    require_usable(folder, where, f"{key}.repo")  # before the weights, which take hours
    files |= repository.fetch({folder / name: listed[name] for name in weights})
    return {"repo": origin.repo, "revision": origin.revision, "files": {name: files[name] for name in names}}


class HubFile(NamedTuple):
    """A file of a repository as the hub lists it."""

    name: str
    size: int | None  # bytes
    digest: cache.Digest

    @classmethod
    def of(cls, file: RepoSibling) -> HubFile:
        """SHA-256 for LFS files, else Git's blob id."""
        digest = (
            cache.Digest("sha256", file.lfs.sha256) if file.lfs else cache.Digest("git", file.blob_id or "")
        )
        return cls(file.rfilename, file.size, digest)

    @property
    def sha256(self) -> str | None:
        """Where the hub lists it."""
        return self.digest.value if self.digest.kind == "sha256" else None


class Repository:
    """A repository at its pinned revision, read with the token of the environment."""

    def __init__(self, origin: HubModel | HubSource, kind: Literal["model", "dataset"], key: str) -> None:
        self.repo, self.revision, self.kind, self.key = origin.repo, origin.revision, kind, key
        self.token = token_from_environment()
        self.name = f"{kind} {self.repo} {self.revision}"

    def files(self) -> dict[str, HubFile]:
        """The repository's files with size and hash, by name. A commit's files never change, so the hub is asked once."""
        listing = cache.remembered(self.name)
        try:
            return {name: HubFile(name, size, cache.Digest(*digest)) for name, size, digest in listing}
        except (TypeError, ValueError):
            pass
        found = self._asking(self._list, f"asking the model hub for {self.repo}")
        cache.remember(self.name, [list(file) for file in found])
        return {file.name: file for file in found}

    def fetch(self, wanted: dict[Path, HubFile]) -> dict[str, dict[str, Any]]:
        """Copy files out of the cache, where those that are missing are downloaded to; return sha256 and size by name.

        Complete and cut files alike stay in the cache if this fails, and the next run continues them.
        """
        with cache.locked(self.name):
            entries = {target: self._entry(file) for target, file in wanted.items()}
            for target, entry in entries.items():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(entry, target)
        return {
            file.name: {"sha256": file.sha256 or sha256_of(path), "bytes": path.stat().st_size}
            for path, file in wanted.items()
        }

    def _entry(self, file: HubFile) -> Path:
        """A checked copy of a file: another program's, the cache's, or a new download's."""
        theirs = try_to_load_from_cache(self.repo, file.name, revision=self.revision, repo_type=self.kind)
        if isinstance(theirs, str) and file.digest.is_of(Path(theirs)):
            return Path(theirs)
        return cache.kept(file.digest) or cache.keep(self._download(file), file.digest)

    def _download(self, file: HubFile) -> Path:
        part = cache.partial(f"{self.name} {file.name}")
        url = hf_hub_url(self.repo, file.name, repo_type=self.kind, revision=self.revision)
        self._asking(
            lambda: continue_download(url, self.token, part, file), f"downloading {file.name} of {self.repo}"
        )
        if not file.digest.is_of(part):
            part.unlink()
            raise UserError(
                f"{file.name} of {self.repo} at revision {self.revision} has not the hash that the hub lists;"
                " the download was deleted. Run again; if it stays so, a proxy or a mirror alters it"
            )
        return part

    def _list(self) -> list[HubFile]:
        api = HfApi(token=self.token)
        try:
            info = api.repo_info(
                self.repo,
                revision=self.revision,
                repo_type=self.kind,
                files_metadata=True,
                timeout=TIMEOUT.read,
            )
        except HFValidationError as error:
            raise UserError(f"params.yaml: {self.key}.repo: {' '.join(str(error).split())}") from None
        except (ValueError, KeyError, TypeError):  # no JSON, or not a repository's
            raise UserError(
                "something else than a model hub answers (a login page of the network?);"
                " check the network and HF_ENDPOINT"
            ) from None
        assert isinstance(info, ModelInfo | DatasetInfo)  # what `kind` asks for
        return [HubFile.of(file) for file in info.siblings or []]

    def _asking(self, ask: Callable[[], T], doing: str) -> T:
        def attempt() -> T:
            """Ask once; an error of the hub or the network becomes one in the user's words."""
            try:
                return ask()
            except (OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._explained(error) from None

        return with_retries(attempt, doing)

    def _explained(self, error: Exception) -> Exception:
        """The error in words that name the key and the remedy; Transient if it may pass by itself."""
        if isinstance(error, HfHubHTTPError):
            return self._refused(error, error.response.status_code)
        if isinstance(error, OfflineModeIsEnabled):
            return UserError(
                "HF_HUB_OFFLINE is set, so nothing can be fetched from the model hub; unset it and run again"
            )
        if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
            return UserError("HF_ENDPOINT is no web address; correct it, or unset it")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Transient(f"{NO_NETWORK} ({error})")
        return Transient(
            f"the connection was cut ({error or type(error).__name__}); run again to continue where it stopped"
        )

    def _refused(self, error: HfHubHTTPError, status: int) -> Exception:
        if isinstance(error, RevisionNotFoundError):
            return UserError(
                f"params.yaml: {self.key}.revision: {self.repo} has no commit {self.revision};"
                " copy a full hash from the repository's history"
            )
        if isinstance(error, RemoteEntryNotFoundError):
            return UserError(
                f"params.yaml: {self.key}: a file of {self.repo} is listed but missing at revision {self.revision};"
                " choose another revision"
            )
        if isinstance(error, GatedRepoError) or status in (401, 403):
            page = hf_hub_url(self.repo, "x", repo_type=self.kind).split("/resolve/")[0]
            token = "the token in HF_TOKEN is not enough" if self.token else "HF_TOKEN is not set"
            return UserError(
                f"params.yaml: {self.key}.repo: no access to {self.repo} (status {status}, {token}): it is gated, private"
                f" or misspelt. Accept its licence at {page}, then set HF_TOKEN to a token of that account"
            )
        if status == 404:
            return UserError(
                f"params.yaml: {self.key}.repo: the hub has no {self.kind} {self.repo}; check its name"
            )
        if status == 429 or status >= 500:
            return Transient(f"the hub answered with status {status}; try again later")
        return UserError(f"the hub refused {self.repo} ({self.key} in params.yaml) with status {status}")


def token_from_environment() -> str | Literal[False]:
    """HF_TOKEN, or False: a token that lies in a file of the user's is not used. It is never written or shown."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", token):  # the client's own message would show it
        raise UserError(
            "HF_TOKEN holds characters that no token has (its value is not shown); set it again, or unset it"
        )
    return token or False


def continue_download(url: str, token: str | bool, part: Path, file: HubFile) -> None:
    """Append what `part` still lacks of the file.

    The connection leads to the hub, which sends on to a store elsewhere; httpx drops the token on the way.
    """
    part.touch()
    have = part.stat().st_size
    if file.size is not None and have >= file.size:
        return
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream(
        "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(
                total=file.size,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                desc=file.name,
                disable=None,
            ) as bar,
        ):
            for chunk in response.iter_bytes():  # as they come: a larger chunk would be lost by a cut
                out.write(chunk)
                bar.update(len(chunk))
    if file.size is not None and part.stat().st_size < file.size:
        raise httpx.RemoteProtocolError("the answer ended early")
