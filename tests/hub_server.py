"""A small model hub on loopback: the endpoints that huggingface_hub's client uses, and faults on request.

    with Hub() as hub:
        repository = hub.add("model", "someone/small", {"config.json": b"{}", "model.safetensors": b"..."})
        ...  # run the client with HF_ENDPOINT=hub.url

Large files (LFS) are handed out and taken by a second server at another origin, as the real hub does: what is sent
to `hub.store` must not carry the token. Set `hub.writer` to a token to let it create repositories and commit to them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")
Content = bytes | mmap.mmap
PLURAL = {"models": "model", "datasets": "dataset"}


@dataclass
class Repository:
    """One repository at one commit."""

    kind: str  # model | dataset
    name: str
    files: dict[str, Content]
    revision: str
    accepted_token: str | None = None  # set: gated, and this token alone has access
    served: dict[str, Content] = field(default_factory=dict)  # bytes handed out instead of the listed ones
    hidden: set[str] = field(default_factory=set)  # listed, but 404 when asked for
    private: bool = False
    _hashes: dict[str, str] = field(default_factory=dict)  # of mapped files, which do not change

    def sibling(self, name: str) -> dict[str, Any]:
        """A file as the repository's listing describes it."""
        content = self.files[name]
        described = {"rfilename": name, "size": len(content), "blobId": self._hash(name, git_blob_id)}
        if name.endswith(LFS_SUFFIXES):
            described["lfs"] = {
                "size": len(content),
                "sha256": self._hash(name, sha256_of),
                "pointerSize": 130,
            }
        return described

    def etag(self, name: str) -> str:
        return self._hash(name, sha256_of if name.endswith(LFS_SUFFIXES) else git_blob_id)

    def _hash(self, name: str, function: Callable[[Content], str]) -> str:
        content = self.files[name]
        if isinstance(content, bytes):
            return function(content)
        key = f"{function.__name__} {name}"
        if key not in self._hashes:
            self._hashes[key] = function(content)
        return self._hashes[key]


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case


class Hub:
    """The hub and its store for large files; `requests` are in the order of arrival."""

    def __init__(self) -> None:
        self.repositories: list[Repository] = []
        self.requests: list[Request] = []
        self.store_requests: list[Request] = []
        self.answers: list[int] = []  # status codes for the next requests, before anything else is looked at
        self.cuts: list[
            int
        ] = []  # for the next downloads of large files: close the connection after so many bytes
        self.writer: str | None = None  # the token that may write
        self.taken: dict[str, bytes] = {}  # large files that clients have sent, by sha256
        self.stalls: list[int] = []  # the same, but the connection stays open and nothing more comes
        self.closing = threading.Event()
        self._servers = [_server(self, _HubHandler), _server(self, _StoreHandler)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def store(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def add(
        self,
        kind: str,
        name: str,
        files: Mapping[str, bytes | Path],
        revision: str | None = None,
        **details: Any,
    ) -> Repository:
        """Publish a repository at a revision (default: a hash of its contents); files given as paths are mapped."""
        contents = {
            file: content if isinstance(content, bytes) else mapped(content)
            for file, content in files.items()
        }
        if revision is None:
            listed = json.dumps({file: sha256_of(content) for file, content in contents.items()})
            revision = hashlib.sha1(listed.encode()).hexdigest()
        repository = Repository(kind, name, contents, revision, **details)
        self.repositories.append(repository)
        return repository

    def downloads(self) -> list[Request]:
        """The requests for a file's bytes, in order."""
        return [
            request
            for request in (*self.requests, *self.store_requests)
            if request.method == "GET" and ("/store/" in request.path or "/resolve/" in request.path)
        ]

    def __enter__(self) -> Self:
        for server in self._servers:
            # Polled often, so that closing takes no half second a test.
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def mapped(path: Path) -> Content:
    """A file's bytes without reading them; of an empty file, which cannot be mapped, no bytes."""
    if not path.stat().st_size:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def sha256_of(content: Content) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: Content) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the tests look at `hub.requests`."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        raise NotImplementedError

    def noted(self) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, self.path, headers)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def send_file(
        self, content: Content, cuts: list[int] | None = None, stalls: list[int] | None = None, **headers: str
    ) -> None:
        """The bytes, or those from the Range's start on; cut short after the first of `cuts` or of `stalls`."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start >= len(content) > 0:
            self.send(416)
            return
        self.send_response(206 if wanted else 200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if stalls:
            self.wfile.write(content[start : start + stalls.pop(0)])
            self.wfile.flush()
            self.hub.closing.wait()
            self.close_connection = True
            return
        if cuts:
            self.wfile.write(content[start : start + cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(memoryview(content)[start:])


class _StoreHandler(_Handler):
    """Hands out what a /store/<repository number>/<file> link points to; takes large files at /taken/<sha256>."""

    def answer(self) -> None:
        self.hub.store_requests.append(self.noted())
        if self.command == "PUT":
            self.hub.taken[self.path.removeprefix("/taken/")] = self.body()
            self.send(200)
            return
        _, _, number, name = unquote(urlsplit(self.path).path).split("/", 3)
        repository = self.hub.repositories[int(number)]
        self.send_file(repository.served.get(name, repository.files[name]), self.hub.cuts, self.hub.stalls)


class _HubHandler(_Handler):
    def answer(self) -> None:
        self.hub.requests.append(self.noted())
        body = self.body()
        if self.hub.answers:
            self.send(self.hub.answers.pop(0))
            return
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/([^/]+)", path):
            self.with_repository(PLURAL[match[1]], match[2], match[3], self.info)
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            names = json.loads(body)["paths"]
            self.with_repository(PLURAL[match[1]], match[2], match[3], lambda found: self.tree(found, names))
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.with_repository(
                PLURAL[match[1]], match[2], match[3], lambda found: self.tree(found, list(found.files))
            )
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "dataset" if match[1] else "model"
            self.with_repository(kind, match[2], match[3], lambda found: self.resolve(found, match[4]))
        elif self.command == "POST":
            self.write(path, body)
        else:
            self.send(404)

    def write(self, path: str, body: bytes) -> None:
        """What the client's create_repo and upload_folder ask for."""
        if path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.writer}":
            self.send(403, X_Error_Message="You don't have the rights to write here.")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.send_json({"files": files})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.hub.store}/taken/{each['oid']}"}}
            self.send_json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.with_repository("model", match[1], "main", lambda found: self.commit(found, body))
        else:
            self.send(404)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if any(each.name == name for each in self.hub.repositories):
            self.send(409, json.dumps(answer).encode(), Content_Type="application/json")
            return
        created = self.hub.add("model", name, {}, private=asked.get("visibility") == "private")
        created.accepted_token = self.hub.writer if created.private else None
        self.send_json(answer)

    def commit(self, found: Repository, body: bytes) -> None:
        """Apply the operations, one JSON document a line."""
        for key, value in ((each["key"], each["value"]) for each in map(json.loads, body.splitlines())):
            if key == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                content = self.hub.taken[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                found.files[value["path"]] = content
            elif key == "deletedFile":
                del found.files[value["path"]]
        found.revision = hashlib.sha1(body).hexdigest()
        where = f"{self.hub.url}/{found.name}/commit/{found.revision}"
        self.send_json({"commitUrl": where, "commitOid": found.revision, "success": True})

    def with_repository(self, kind: str, name: str, revision: str, answer: Any) -> None:
        """Answer for the repository, or refuse in the hub's own words (its X-Error-Code)."""
        found = next((each for each in self.hub.repositories if (each.kind, each.name) == (kind, name)), None)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if found is None:
            self.send(401 if not token else 404, X_Error_Code="RepoNotFound")
        elif found.accepted_token and token != found.accepted_token:
            self.send(
                403 if token else 401,
                X_Error_Code="GatedRepo",
                X_Error_Message=f"Access to {name} is restricted.",
            )
        elif revision not in (found.revision, "main"):
            self.send(404, X_Error_Code="RevisionNotFound")
        else:
            answer(found)

    def info(self, found: Repository) -> None:
        siblings = [found.sibling(name) for name in found.files]
        self.send_json({"id": found.name, "sha": found.revision, "private": False, "siblings": siblings})

    def tree(self, found: Repository, names: list[str]) -> None:
        listed = []
        for sibling in map(found.sibling, (name for name in names if name in found.files)):
            entry = {
                "type": "file",
                "path": sibling["rfilename"],
                "size": sibling["size"],
                "oid": sibling["blobId"],
            }
            if lfs := sibling.get("lfs"):
                entry["lfs"] = {"size": lfs["size"], "oid": lfs["sha256"], "pointerSize": lfs["pointerSize"]}
            listed.append(entry)
        self.send_json(listed)

    def resolve(self, found: Repository, name: str) -> None:
        if name not in found.files or name in found.hidden:
            self.send(404, X_Error_Code="EntryNotFound")
            return
        headers = {"X_Repo_Commit": found.revision, "ETag": f'"{found.etag(name)}"'}
        if name.endswith(LFS_SUFFIXES):
            linked = {"X_Linked_Etag": headers.pop("ETag"), "X_Linked_Size": str(len(found.files[name]))}
            where = f"{self.hub.store}/store/{self.hub.repositories.index(found)}/{name}"
            self.send(302, **headers, **linked, Location=where)
        else:
            self.send_file(found.served.get(name, found.files[name]), **headers)


def _server(hub: Hub, handler: type[_Handler]) -> ThreadingHTTPServer:
    bound = type(handler.__name__, (handler,), {"hub": hub})
    return ThreadingHTTPServer(("127.0.0.1", 0), bound)
