"""The state of the test Hub in a directory: repositories with their commits, refs and LFS objects, users, a log.

Every file is written under a temporary name and then moved into place, so that a reader finds either the old state or
the new one, whatever happens to the process. A commit takes effect when the repository's `state.json` is moved.
"""

import base64
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".tar", ".gz", ".zip", ".npz")
# Larger files must be uploaded through LFS.
REGULAR_LIMIT = 10_000_000
_NAME = r"(?!.*(?:--|\.\.))(?!.*\.git$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_CHUNK = 2**20

File = dict[str, Any]


class HubError(Exception):
    """An error response with its message."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The LFS pointer file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def sent_content(value: dict[str, Any]) -> bytes:
    """The content of a file that a commit contains as a regular file."""
    if value.get("encoding") == "base64":
        return base64.b64decode(value["content"])
    return value["content"].encode()


def copy_stream(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """
    Raises:
        ConnectionError: the source ended early.
    """
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise ConnectionError("the content ends early")
        target.write(chunk)
        size -= len(chunk)


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("wb") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with written_aside(path) as file:
        file.write(json.dumps(value).encode())


def read_json(path: Path, default: Any = None) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return default


class Storage:
    """The state of a server. `lock` guards changes to existing entries."""

    def __init__(self, directory: Path):
        self.directory, self.lock = directory, threading.RLock()

    def repository(self, kind: str, repo_id: str) -> "Repository":
        """
        Raises:
            HubError: it does not exist.
        """
        if not re.fullmatch(f"{_NAME}/{_NAME}", repo_id) or not (self._path(kind, repo_id) / "state.json").exists():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return Repository(self._path(kind, repo_id), repo_id, self.lock)

    def create(self, kind: str, repo_id: str, private: bool, author: str) -> None:
        """
        Raises:
            HubError: the name is taken or invalid.
        """
        if len(repo_id) > 96 or not re.fullmatch(f"{_NAME}/{_NAME}", repo_id):
            raise HubError(400, f"Invalid repo name: {repo_id.encode('ascii', 'backslashreplace').decode()}")
        path, aside = self._path(kind, repo_id), self.directory / "aside" / secrets.token_hex(8)
        with self.lock:
            if path.exists():
                raise HubError(409, f"You already created this {kind} repo")
            Repository(aside, repo_id, self.lock).initialize(private, author)
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.replace(path)

    def delete(self, kind: str, repo_id: str) -> None:
        aside = self.directory / "aside" / secrets.token_hex(8)
        aside.parent.mkdir(exist_ok=True)
        with self.lock:
            self.repository(kind, repo_id).path.replace(aside)
        shutil.rmtree(aside)

    def _path(self, kind: str, repo_id: str) -> Path:
        return self.directory / "repositories" / f"{kind}s" / repo_id

    def users(self) -> dict[str, dict[str, Any]]:
        """The users by token."""
        return read_json(self.directory / "users.json", {})

    def sign(self, **record: Any) -> str:
        """Store a record for a signed URL, which works without a token, and return its key."""
        key = secrets.token_hex(16)
        write_json(self.directory / "signed" / f"{key}.json", record)
        return key

    def signed(self, key: str) -> dict[str, Any] | None:
        return read_json(self.directory / "signed" / f"{key}.json")

    def order_fault(self, token: str, at: int, fault: dict[str, Any]) -> None:
        """Inject a fault into request number `at`, counted from now."""
        now = self._counts().get(token, 0)
        orders = self._orders()
        faults = [*orders.get(token, {"faults": []})["faults"], {**fault, "at": now + at}]
        write_json(self.directory / "faults.json", {**orders, token: {"since": now, "faults": faults}})

    def clear_faults(self) -> None:
        orders = {token: {**order, "faults": []} for token, order in self._orders().items()}
        write_json(self.directory / "faults.json", orders)

    def requests_of(self, token: str) -> int:
        """The number of requests since the last fault was injected for this token."""
        return self._counts().get(token, 0) - self._orders().get(token, {"since": 0})["since"]

    def next_fault(self, token: str) -> dict[str, Any] | None:
        """Count a request and return the fault to inject, if any."""
        with self.lock:
            counts = self._counts()
            number = counts.get(token, 0)
            write_json(self.directory / "counts.json", {**counts, token: number + 1})
        for fault in self._orders().get(token, {"faults": []})["faults"]:
            if number >= fault["at"] and (fault["times"] is None or number < fault["at"] + fault["times"]):
                return fault
        return None

    def _counts(self) -> dict[str, int]:
        """The number of requests by token."""
        return read_json(self.directory / "counts.json", {})

    def _orders(self) -> dict[str, Any]:
        """The faults by token, with the request number from which the last one was counted."""
        return read_json(self.directory / "faults.json", {})

    def log(self, entry: dict[str, Any]) -> None:
        with self.lock, (self.directory / "requests.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Repository:
    """Branches and tags, commits with their files, and file contents by hash."""

    def __init__(self, path: Path, repo_id: str, lock: threading.RLock):
        self.path, self.id, self._lock = path, repo_id, lock

    def initialize(self, private: bool, author: str) -> None:
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        files = {".gitattributes": self._add_blob(attributes.encode())}
        commit = self._add_commit(None, files, "initial commit", "", author)
        state = {"private": private, "gated": False, "gated_files": "*", "created": _now()}
        write_json(self.path / "state.json", {**state, "branches": {"main": commit}, "tags": {}})

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.path / "state.json")

    @contextmanager
    def changed_state(self) -> Iterator[dict[str, Any]]:
        """The state, which is written unless an exception is raised."""
        with self._lock:
            state = self.state
            yield state
            write_json(self.path / "state.json", state)

    def commit_of(self, revision: str) -> str:
        """The hash of the commit for a branch, a tag or a full or shortened hash.

        Raises:
            HubError: it does not exist.
        """
        state = self.state
        for refs in (state["branches"], state["tags"]):
            if revision in refs:
                return refs[revision]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for path in (self.path / "commits").glob(f"{revision}*.json"):
                return path.stem
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, commit: str) -> dict[str, Any]:
        return read_json(self.path / "commits" / f"{commit}.json")

    def files(self, commit: str) -> dict[str, File]:
        """By path: `oid` (the git hash) and `size`, and for LFS files also `sha256`."""
        return self.commit(commit)["files"]

    def history(self, commit: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        while commit:
            record = self.commit(commit)
            yield commit, record
            commit = record["parent"]

    def content(self, file: File) -> Path:
        return self.object(file["sha256"]) if "sha256" in file else self.path / "blobs" / file["oid"]

    def object(self, sha256: str) -> Path:
        return self.path / "objects" / sha256

    def add_object(self, sources: list[BinaryIO], sha256: str, size: int) -> None:
        """
        Raises:
            HubError: the content does not match.
        """
        with written_aside(self.object(sha256)) as target:
            for source in sources:
                shutil.copyfileobj(source, target, _CHUNK)
            target.flush()
            with Path(target.name).open("rb") as written:
                digest, length = _sha256(written), written.tell()
            if (digest, length) != (sha256, size):
                raise HubError(400, f"The content has sha256 {digest} and size {length}, not {sha256} and {size}")

    def part(self, upload: str, number: int) -> Path:
        return self.path / "uploads" / upload / str(number)

    def add_commit(
        self, branch: str, changes: list[tuple[str, dict[str, Any]]], header: dict[str, Any], author: str
    ) -> str:
        """Make all changes or none.

        Raises:
            HubError: there is no such branch, its head is not the expected parent, or a change cannot be made.
        """
        with self.changed_state() as state:
            head, parent = state["branches"].get(branch), header.get("parentCommit")
            if head is None:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if parent and not (len(parent) >= 7 and head.startswith(parent)):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = self.files(head)
            for kind, value in changes:
                self._apply(files, kind, value)
            if any(folder in files for path in files for folder in _folders(path)):
                raise HubError(400, "A path is both a file and a folder")
            summary, description = header["summary"], header.get("description", "")
            state["branches"][branch] = self._add_commit(head, files, summary, description, author)
        return state["branches"][branch]

    def _apply(self, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value["path"].rstrip("/")
        if any(part in ("", ".", "..", ".git") for part in path.split("/")) or re.search(r"[\0-\x1f\\]", path):
            raise HubError(400, "Invalid path in a commit")
        match kind:
            case "file":
                files[path] = self._add_blob(sent_content(value))
            case "lfsFile":
                files[path] = self._lfs_file(value["oid"], value.get("size"))
            case "deletedFile":
                if files.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            case "deletedFolder":
                inside = [name for name in files if name.startswith(f"{path}/")]
                if not inside:
                    raise HubError(404, "A folder with this name doesn't exist", "EntryNotFound")
                for name in inside:
                    del files[name]
            case _:
                raise HubError(400, f"Unknown operation {kind}")

    def _add_blob(self, content: bytes) -> File:
        if len(content) > REGULAR_LIMIT:
            raise HubError(400, "Your push was rejected: files of more than 10 MB must be LFS files")
        oid = git_hash("blob", content)
        with written_aside(self.path / "blobs" / oid) as file:
            file.write(content)
        return {"oid": oid, "size": len(content)}

    def _lfs_file(self, sha256: str, size: int | None) -> File:
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not self.object(sha256).exists():
            raise HubError(400, "Your push was rejected: an LFS pointer points to a file that does not exist")
        stored = self.object(sha256).stat().st_size
        if size not in (None, stored):
            raise HubError(400, f"An LFS pointer says size {size}, its file has {stored}")
        return {"oid": git_hash("blob", pointer(sha256, stored)), "size": stored, "sha256": sha256}

    def _add_commit(self, parent: str | None, files: dict[str, File], title: str, message: str, author: str) -> str:
        record = {"parent": parent, "title": title, "message": message, "author": author, "date": _now()}
        record |= {"files": dict(sorted(files.items()))}
        commit = git_hash("commit", json.dumps(record).encode())
        write_json(self.path / "commits" / f"{commit}.json", record)
        return commit


def entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Files and folders by path, as the Hub lists them."""
    trees = _tree_hashes(files)
    del trees[""]
    shown = {path: {"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in trees.items()}
    for path, file in files.items():
        shown[path] = {
            "type": "file",
            "oid": file["oid"],
            "size": file["size"],
            "path": path,
            **lfs_entry(file, "oid"),
        }
    return dict(sorted(shown.items()))


def lfs_entry(file: File, hash_name: str) -> dict[str, Any]:
    if "sha256" not in file:
        return {}
    sizes = {"size": file["size"], "pointerSize": len(pointer(file["sha256"], file["size"]))}
    return {"lfs": {hash_name: file["sha256"], **sizes}}


def _tree_hashes(files: dict[str, File]) -> dict[str, str]:
    """The git hash of each folder; the root is ""."""
    folders = {folder for path in files for folder in _folders(path)} | {""}
    members: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        members[folder].append((name, f"100644 {name}", file["oid"]))
    hashes = {}
    # Folders come before their parents.
    for folder in sorted(folders, reverse=True):
        content = b"".join(f"{name}\0".encode() + bytes.fromhex(oid) for _, name, oid in sorted(members[folder]))
        hashes[folder] = git_hash("tree", content)
        around, _, name = folder.rpartition("/")
        # git sorts folders as if their names ended with a slash.
        members[around].append((f"{name}/", f"40000 {name}", hashes[folder]))
    return hashes


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
