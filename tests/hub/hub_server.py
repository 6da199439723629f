"""A small server that speaks the Hugging Face Hub's HTTP protocol, for tests with the real clients.

    python hub_server.py DIRECTORY [--port 0] [--multipart-size BYTES] [--page-size ENTRIES]

prints its port. Its entire state is in DIRECTORY, so that it continues where it left off after being killed. Large
files go through LFS: they are uploaded to and downloaded from signed URLs on another host name, which refuse tokens.
Tests start it as `HubServer`, which also injects faults: dropped connections, truncated responses, errors, a killed
server.
"""

import argparse
import base64
import fnmatch
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterable
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from hub_cards import SPACE_SDKS, read_card
from hub_protocol import Answer, Handler, error_answer, file_answer, json_answer, route
from hub_storage import (
    LFS_SUFFIXES,
    REGULAR_LIMIT,
    File,
    HubError,
    Repository,
    Storage,
    entries,
    lfs_entry,
    sent_content,
    write_json,
    written_aside,
)

MULTIPART_SIZE = 5 * 2**20
PAGE_SIZE = 1000
API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+(?:/[^/]+)?)"
PAGES = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+(?:/[^/]+?)?)"


class HubHandler(Handler):
    """The Hub's routes."""

    server: "_Server"

    @property
    def endpoint(self) -> str:
        return f"http://{self.headers['Host']}"

    def _signed_address(self, route: str, name: str, repository: Repository, **record: Any) -> str:
        key = self.storage.sign(kind=self.kind, repo_id=repository.id, token=self.token, **record)
        host = "127.0.0.1" if self.headers["Host"].startswith("localhost") else "localhost"
        return f"http://{host}:{self.server.server_port}/_{route}/{key}/{quote(name)}"

    def _page(self, items: list[Any]) -> Answer:
        start, limit = int(self.query.get("cursor", 0)), self.server.page_size
        limit = min(limit, int(self.query.get("limit", limit)))
        headers = {}
        if start + limit < len(items):
            query = urlencode({**self.query, "cursor": start + limit})
            headers["Link"] = f'<{self.endpoint}{self.raw_path}?{query}>; rel="next"'
        return json_answer(items[start : start + limit], **headers)

    # -- Users and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> Answer:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        name = self.user["name"]
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": role} for org, role in self.user["orgs"]]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.user["role"]}}
        return json_answer({"type": "user", "id": name, "name": name, "fullname": name, "orgs": orgs, "auth": auth})

    @route("POST", "/api/repos/create")
    def create(self) -> Answer:
        kind, repo_id, wanted = self._named_repository()
        if kind == "space" and wanted.get("sdk") not in SPACE_SDKS:
            raise HubError(400, f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
        private = wanted.get("private") or wanted.get("visibility") == "private"
        page = self._page_of(kind, repo_id)
        try:
            self.storage.create(kind, repo_id, bool(private), self.user["name"])
        except HubError as error:
            return error_answer(error, url=page)
        return json_answer({"url": page, "name": repo_id, "id": repo_id})

    @route("DELETE", "/api/repos/delete")
    def delete(self) -> Answer:
        kind, repo_id, _ = self._named_repository()
        self.storage.delete(kind, repo_id)
        return json_answer({})

    def _named_repository(self) -> tuple[str, str, dict[str, Any]]:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        wanted = self._json()
        kind, namespace = wanted.get("type") or "model", wanted.get("organization") or self.user["name"]
        if kind not in ("model", "dataset", "space"):
            raise HubError(400, "Invalid repo type")
        rights = f"You don't have the rights to create a {kind} under the namespace {namespace!a}"
        self._require_write(namespace, rights)
        return kind, f"{namespace}/{wanted['name']}", wanted

    def _page_of(self, kind: str, repo_id: str) -> str:
        return f"{self.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"

    @route("PUT", f"{API}/settings", "write")
    def settings(self, repository: Repository) -> Answer:
        wanted = self._json()
        with repository.changed_state() as state:
            if "private" in wanted or "visibility" in wanted:
                state["private"] = wanted.get("visibility", "private" if wanted.get("private") else "") == "private"
            state["gated"] = wanted.get("gated", state["gated"])
        return json_answer({"private": state["private"], "gated": state["gated"]})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Answer:
        sent = self._json()
        _, errors, warnings = read_card(sent["content"], sent.get("repoType") or "model")
        messages = {"errors": errors, "warnings": warnings}
        answer = {key: [{"message": message} for message in values] for key, values in messages.items()}
        return json_answer(answer, 400 if errors else 200)

    @route("GET", f"{API}/refs", "read")
    def refs(self, repository: Repository) -> Answer:
        state, answer = repository.state, {"converts": []}
        for kind, prefix in (("branches", "refs/heads"), ("tags", "refs/tags")):
            refs = sorted(state[kind].items())
            answer[kind] = [{"name": name, "ref": f"{prefix}/{name}", "targetCommit": oid} for name, oid in refs]
        return json_answer({**answer, **({"pullRequests": []} if "include_prs" in self.query else {})})

    @route("POST", f"{API}/branch/(?P<name>[^/]+)", "write")
    def create_branch(self, repository: Repository, name: str) -> Answer:
        return self._create_ref(repository, "branches", name, self._json().get("startingPoint", "main"))

    @route("POST", f"{API}/tag/(?P<revision>[^/]+)", "write")
    def create_tag(self, repository: Repository, revision: str) -> Answer:
        return self._create_ref(repository, "tags", self._json()["tag"], revision)

    def _create_ref(self, repository: Repository, kind: str, name: str, revision: str) -> Answer:
        if not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*", name):
            raise HubError(400, "Invalid name of a reference")
        with repository.changed_state() as state:
            if name in state[kind]:
                raise HubError(409, f"Reference already exists: {name}")
            state[kind][name] = repository.commit_of(revision)
        return json_answer({})

    @route("DELETE", f"{API}/(?P<kind_of_ref>branch|tag)/(?P<name>[^/]+)", "write")
    def delete_ref(self, repository: Repository, kind_of_ref: str, name: str) -> Answer:
        if (kind_of_ref, name) == ("branch", "main"):
            raise HubError(403, "Forbidden: the default branch cannot be deleted")
        with repository.changed_state() as state:
            if state["branches" if kind_of_ref == "branch" else "tags"].pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return json_answer({})

    # -- Contents

    @route("GET", API, "read")
    def info(self, repository: Repository) -> Answer:
        return self.revision_info(repository, "main")

    @route("GET", f"{API}/revision/(?P<revision>[^/]+)", "read")
    def revision_info(self, repository: Repository, revision: str) -> Answer:
        commit, state = repository.commit_of(revision), repository.state
        record = repository.commit(commit)
        files, card = record["files"], {}
        if "README.md" in files:
            card = read_card(repository.content(files["README.md"]).read_text(errors="replace"))[0]
        shown = {key: state[key] for key in ("private", "gated")}
        shown |= {"_id": repository.id, "id": repository.id, "author": repository.id.partition("/")[0], "sha": commit}
        shown |= {"createdAt": state["created"], "lastModified": record["date"], "disabled": False}
        shown |= {"downloads": 0, "likes": 0, "cardData": card, "tags": card.get("tags", [])}
        shown |= {key: card[key] for key in ("pipeline_tag", "library_name", "sdk") if key in card}
        shown["siblings"] = [{"rfilename": path, **self._blob(file)} for path, file in files.items()]
        return json_answer(shown)

    def _blob(self, file: File) -> dict[str, Any]:
        if self.query.get("blobs", "").lower() not in ("true", "1"):
            return {}
        return {"blobId": file["oid"], "size": file["size"], **lfs_entry(file, "sha256")}

    @route("GET", f"{API}/commits/(?P<revision>[^/]+)", "read")
    def commits(self, repository: Repository, revision: str) -> Answer:
        history = repository.history(repository.commit_of(revision))
        shown = ("title", "message", "date")
        return self._page(
            [
                {"id": commit, "authors": [{"user": record["author"]}], **{key: record[key] for key in shown}}
                for commit, record in history
            ]
        )

    @route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "read")
    def tree(self, repository: Repository, revision: str, folder: str) -> Answer:
        shown = entries(repository.files(repository.commit_of(revision)))
        folder = folder.strip("/")
        if folder and shown.get(folder, {}).get("type") != "directory":
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive, prefix = self.query.get("recursive", "").lower() in ("true", "1"), f"{folder}/" if folder else ""
        inside = [entry for path, entry in shown.items() if path.startswith(prefix)]
        return self._page([entry for entry in inside if recursive or "/" not in entry["path"][len(prefix) :]])

    @route("POST", f"{API}/paths-info/(?P<revision>[^/]+)", "read")
    def paths_info(self, repository: Repository, revision: str) -> Answer:
        if "json" in self.headers.get("Content-Type", ""):
            paths = self._json()["paths"]
        else:
            paths = parse_qs(self.body.read().decode()).get("paths", [])
        shown = entries(repository.files(repository.commit_of(revision)))
        return json_answer([shown[path] for path in paths if path in shown])

    @route("GET", f"{PAGES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "read")
    def resolve(self, repository: Repository, revision: str, path: str) -> Answer:
        self._require_acceptance(repository, path)
        commit = repository.commit_of(revision)
        file = repository.files(commit).get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            answer = error_answer(HubError(404, "Entry not found", "EntryNotFound"))
            answer.headers |= headers
            return answer
        if "sha256" not in file:
            headers["ETag"] = f'"{file["oid"]}"'
            return file_answer(repository.content(file), self.headers.get("Range"), headers)
        name = f"{self._page_of(self.kind, repository.id).removeprefix(self.endpoint)[1:]}/{path}"
        headers["Location"] = self._signed_address("cdn", name, repository, sha256=file["sha256"])
        headers |= {"X-Linked-Etag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
        return Answer(b"Found. Redirecting", 302, {**headers, "Content-Type": "text/plain; charset=utf-8"})

    def _require_acceptance(self, repository: Repository, path: str) -> None:
        state = repository.state
        if not state["gated"] or not fnmatch.fnmatch(path, state["gated_files"]) or self._role(repository.id):
            return
        restricted = f"Access to {self.kind} {repository.id} is restricted"
        if self.user is None:
            message = f"{restricted}. You must have access to it and be authenticated to access it. Please log in."
            raise HubError(401, message, "GatedRepo")
        page = self._page_of(self.kind, repository.id)
        message = f"{restricted} and you are not in the authorized list. Visit {page} to ask for access."
        raise HubError(403, message, "GatedRepo")

    @route("GET", "/_cdn/.*")
    def download(self) -> Answer:
        repository = self._signed_repository()
        path = repository.object(self.record["sha256"])
        return file_answer(path, self.headers.get("Range"), {"ETag": f'"{self.record["sha256"]}"'})

    def _signed_repository(self) -> Repository:
        if self.record is None:
            raise HubError(403, "The signature is invalid")
        if "Authorization" in self.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        self.kind = self.record["kind"]
        return self.storage.repository(self.kind, self.record["repo_id"])

    # -- Uploads and commits

    @route("POST", f"{API}/preupload/(?P<revision>[^/]+)", "write")
    def preupload(self, repository: Repository, revision: str) -> Answer:
        self._refuse_pull_requests()
        commit, wanted = repository.commit_of(revision), self._json()
        files, ignored = repository.files(commit), wanted.get("gitIgnore")
        if ignored is None and ".gitignore" in files:
            ignored = repository.content(files[".gitignore"]).read_text()
        shown = []
        for file in wanted["files"]:
            path = file["path"]
            mode = "lfs" if _uses_lfs(path, file) else "regular"
            shown.append({"path": path, "uploadMode": mode, "shouldIgnore": _is_ignored(path, ignored or "")})
            if path in files:
                shown[-1]["oid"] = files[path].get("sha256", files[path]["oid"])
        return json_answer({"files": shown, "commitOid": commit})

    def _refuse_pull_requests(self) -> None:
        if self.query.get("create_pr") == "1":
            raise HubError(400, "There are no pull requests here")

    @route("POST", rf"{PAGES}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repository: Repository) -> Answer:
        wanted = self._json()
        multipart = "multipart" in wanted.get("transfers", ())
        objects = [self._upload_instructions(repository, multipart, **wish) for wish in wanted["objects"]]
        return json_answer({"transfer": "multipart" if multipart else "basic", "objects": objects})

    def _upload_instructions(self, repository: Repository, multipart: bool, oid: str, size: int) -> dict[str, Any]:
        shown = {"oid": oid, "size": size, "authenticated": True}
        if not re.fullmatch("[0-9a-f]{64}", oid):
            return {**shown, "error": {"code": 422, "message": "The oid is not a sha256"}}
        if repository.object(oid).exists():
            return shown
        upload = {"sha256": oid, "size": size}
        page = self._page_of(self.kind, repository.id)
        verify = {"href": f"{page}.git/info/lfs/objects/verify", "header": {}}
        chunk = self.server.multipart_size
        if not multipart or size <= chunk:
            address = self._signed_address("storage", oid, repository, **upload)
            return {**shown, "actions": {"upload": {"href": address, "header": {}}, "verify": verify}}
        upload |= {"upload": secrets.token_hex(16), "parts": math.ceil(size / chunk)}
        # Parts go to the storage; the Hub itself completes the upload.
        completion = self._signed_address("complete", oid, repository, **upload).partition("/_complete/")[2]
        header = {"chunk_size": str(chunk)}
        for part in range(1, upload["parts"] + 1):
            header[f"{part:05}"] = self._signed_address("storage", f"{oid}/{part}", repository, part=part, **upload)
        actions = {"upload": {"href": f"{self.endpoint}/_complete/{completion}", "header": header}, "verify": verify}
        return {**shown, "actions": actions}

    @route("PUT", "/_storage/.*")
    def upload(self) -> Answer:
        repository, record = self._signed_repository(), self.record
        if "part" not in record:
            repository.add_object([self.body], record["sha256"], record["size"])
            return Answer(headers={"ETag": f'"{record["sha256"]}"'})
        path = repository.part(record["upload"], record["part"])
        with written_aside(path) as file:
            shutil.copyfileobj(self.body, file)
        return Answer(headers={"ETag": _part_etag(path)})

    @route("POST", "/_complete/.*")
    def complete(self) -> Answer:
        repository, record = self._signed_repository(), self.record
        paths = [repository.part(record["upload"], part) for part in range(1, record["parts"] + 1)]
        etags = [_part_etag(path) for path in paths if path.exists()]
        parts = sorted(self._json()["parts"], key=lambda part: part["partNumber"])
        if len(etags) < len(paths) or [part["etag"] for part in parts] != etags:
            raise HubError(400, "The parts are not those that were uploaded")
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            repository.add_object(files, record["sha256"], record["size"])
        return json_answer({"success": True})

    @route("POST", rf"{PAGES}\.git/info/lfs/objects/verify", "write")
    def lfs_verify(self, repository: Repository) -> Answer:
        wanted = self._json()
        path = repository.object(wanted["oid"])
        if not re.fullmatch("[0-9a-f]{64}", wanted["oid"]) or not path.exists():
            raise HubError(404, "The object does not exist")
        if path.stat().st_size != wanted["size"]:
            raise HubError(400, "The object has another size")
        return json_answer({"success": True})

    @route("POST", f"{API}/commit/(?P<revision>[^/]+)", "write")
    def commit(self, repository: Repository, revision: str) -> Answer:
        self._refuse_pull_requests()
        try:
            lines = [json.loads(line) for line in self.body if line.strip()]
        except ValueError:
            raise HubError(400, "The body is not NDJSON") from None
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise HubError(400, "A commit begins with a header that has a summary")
        changes = [(line["key"], line["value"]) for line in lines[1:]]
        _require_valid_card(changes)
        commit = repository.add_commit(revision, changes, lines[0]["value"], self.user["name"])
        page = f"{self._page_of(self.kind, repository.id)}/commit/{commit}"
        return json_answer({"success": True, "commitOid": commit, "commitUrl": page, "hookOutput": ""})


def _require_valid_card(changes: list[tuple[str, dict[str, Any]]]) -> None:
    for kind, value in changes:
        if (kind, value["path"]) == ("file", "README.md"):
            errors = read_card(sent_content(value).decode(errors="replace"))[1]
            if errors:
                raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")


def _uses_lfs(path: str, file: dict[str, Any]) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(base64.b64decode(file["sample"]))
    except UnicodeDecodeError:
        return True
    return path.endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT or "\0" in text


def _is_ignored(path: str, patterns: str) -> bool:
    """Supports only the plain patterns of a .gitignore, no negations."""
    wanted = [line.strip().strip("/") for line in patterns.splitlines() if line.strip() and line[0] not in "#!"]
    parts = path.split("/")
    candidates = [*parts, *("/".join(parts[:end]) for end in range(1, len(parts) + 1))]
    return any(fnmatch.fnmatch(candidate, pattern) for candidate in candidates for pattern in wanted)


def _part_etag(path: Path) -> str:
    return f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory: Path, port: int, multipart_size: int, page_size: int):
        self.storage, self.multipart_size, self.page_size = Storage(directory), multipart_size, page_size
        super().__init__(("127.0.0.1", port), HubHandler)


def client_environment(port: int, token: str | None = None, home: Path | None = None) -> dict[str, str]:
    """This environment, with every variable that points clients at a server on this port."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
    environment |= {"NO_PROXY": "localhost,127.0.0.1", "no_proxy": "localhost,127.0.0.1"}
    for name in ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK"):
        environment[f"HF_HUB_DISABLE_{name}"] = "1"
    given = {"HF_TOKEN": token, "HF_HOME": home}
    return environment | {name: str(value) for name, value in given.items() if value is not None}


class HubServer:
    """A server in a separate process. When restarted, it listens on the same port."""

    def __init__(
        self, directory: Path, multipart_size: int = MULTIPART_SIZE, page_size: int = PAGE_SIZE, port: int = 0
    ):
        self.directory, self.port = Path(directory), port
        self._options = ["--multipart-size", str(multipart_size), "--page-size", str(page_size)]
        self._storage, self._process = Storage(self.directory), None

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> "HubServer":
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(self.directory), "--port", str(self.port), *self._options]
        with (self.directory / "errors.txt").open("a") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start:\n{(self.directory / 'errors.txt').read_text()}")
        self.port = int(line)
        return self

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def stop(self) -> None:
        self._process.terminate()
        self.wait()

    def wait(self) -> int:
        """Wait for the process to end, and return its exit code."""
        self._process.stdout.close()
        return self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """This environment, with every variable that points clients at this server."""
        return client_environment(self.port, token, home)

    def add_user(self, name: str, token: str, role: str = "write", orgs: Iterable[tuple[str, str]] = ()) -> None:
        users = {**self._storage.users(), token: {"name": name, "role": role, "orgs": list(orgs)}}
        write_json(self.directory / "users.json", users)

    def gate(self, repo_id: str, repo_type: str = "model", files: str = "*") -> None:
        """From then on, only members of the namespace may read the matching files."""
        with self._storage.repository(repo_type, repo_id).changed_state() as state:
            state |= {"gated": "manual", "gated_files": files}

    def head(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> str:
        return self._storage.repository(repo_type, repo_id).commit_of(revision)

    def snapshot(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """File contents by path."""
        repository = self._storage.repository(repo_type, repo_id)
        files = repository.files(repository.commit_of(revision))
        return {path: repository.content(file).read_bytes() for path, file in files.items()}

    def requests(self) -> list[dict[str, Any]]:
        """All requests so far: method, path, query, host, token and status, which is None if there was no response."""
        log = self.directory / "requests.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def fail(
        self,
        token: str | None,
        at: int,
        kind: str | int,
        when: str = "before",
        times: int | None = 1,
        retry_after: int = 0,
    ) -> None:
        """Inject a fault into request number `at` with this token, counted from now, and possibly those after it.

        Args:
            token: None for requests without one. Signed URLs belong to the token they were issued to.
            kind: "drop" closes the connection without a response, "truncate" cuts a response short, "kill" kills the
                server, and a number is the status of the response.
            when: "before" the request is handled, or "after" it has been.
            times: how many requests are affected; None for all that follow.
            retry_after: seconds, sent with 429 and 503.
        """
        if kind not in ("drop", "truncate", "kill") and not isinstance(kind, int):
            raise ValueError(f"unknown fault {kind!r}")
        fault = {"kind": kind, "when": when, "times": times, "retry_after": retry_after}
        self._storage.order_fault(token or "", at, fault)

    def clear_faults(self) -> None:
        self._storage.clear_faults()

    def requests_of(self, token: str | None) -> int:
        """How many requests used this token or a URL signed for it, since the last fault was injected for it."""
        return self._storage.requests_of(token or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--multipart-size", type=int, default=MULTIPART_SIZE)
    parser.add_argument("--page-size", type=int, default=PAGE_SIZE)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    server = _Server(arguments.directory, arguments.port, arguments.multipart_size, arguments.page_size)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
