"""Requests, responses and faults of the test Hub: the part that all its routes share."""

import json
import os
import re
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from hub_storage import HubError, Repository, Storage, copy_stream


class Content(NamedTuple):
    """A part of a file."""

    path: Path
    start: int
    length: int


@dataclass
class Answer:
    content: bytes | Content = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.content.length if isinstance(self.content, Content) else len(self.content)


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    content = json.dumps(value, default=str).encode()
    return Answer(content, status, {"Content-Type": "application/json; charset=utf-8", **headers})


def error_answer(error: HubError, **more: Any) -> Answer:
    answer = json_answer({"error": error.message, **more}, error.status)
    answer.headers["X-Error-Message"] = error.message.encode("unicode_escape").decode()
    if error.code:
        answer.headers["X-Error-Code"] = error.code
    return answer


def file_answer(path: Path, requested_range: str | None, headers: dict[str, str]) -> Answer:
    size = path.stat().st_size
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", requested_range or "")
    if not asked or not (asked[1] or asked[2]):
        return Answer(Content(path, 0, size), 200, headers)
    first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first > last:
        return Answer(b"", 416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(Content(path, first, last - first + 1), 206, headers)


class Route(NamedTuple):
    method: str
    pattern: re.Pattern
    access: str | None
    answer: Callable[..., Answer]


ROUTES: list[Route] = []


def route(method: str, pattern: str, access: str | None = None) -> Callable:
    """With `access` ("read" or "write"), the method receives the repository named in the URL."""

    def register(answer: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append(Route(method, re.compile(pattern), access, answer))
        return answer

    return register


class Handler(BaseHTTPRequestHandler):
    """Receives a request, finds its route, checks access, and responds, unless a fault is injected."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def storage(self) -> Storage:
        return self.server.storage

    def _handle(self) -> None:
        self.raw_path, _, query = self.path.partition("?")
        self.query = dict(parse_qsl(query))
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        with tempfile.SpooledTemporaryFile(2**20, dir=self.storage.directory) as self.body:
            try:
                self._receive()
                self._answer_or_fail()
            except (ConnectionError, ValueError):
                # The client has disconnected, or its request is not valid HTTP.
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _receive(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                copy_stream(self.rfile, self.body, size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            copy_stream(self.rfile, self.body, int(self.headers.get("Content-Length", 0)))
        self.body.seek(0)

    def _answer_or_fail(self) -> None:
        signature = re.match("/_(?:storage|complete|cdn)/([0-9a-f]{32})", self.raw_path)
        self.record = self.storage.signed(signature[1]) if signature else None
        fault = self.storage.next_fault(self.token or (self.record or {}).get("token") or "")
        fault = fault or {"kind": None, "when": "after"}
        answer = None if fault["when"] == "before" and fault["kind"] != "truncate" else self._answer()
        if isinstance(fault["kind"], int):
            answer = error_answer(HubError(fault["kind"], HTTPStatus(fault["kind"]).phrase))
            if fault["kind"] in (429, 503):
                answer.headers["Retry-After"] = str(fault["retry_after"])
        silent = fault["kind"] in ("drop", "kill")
        self._log(None if silent else answer.status)
        if fault["kind"] == "kill":
            os._exit(137)
        if silent:
            self.close_connection = True
        else:
            self._send(answer, truncated=fault["kind"] == "truncate")

    def _log(self, status: int | None) -> None:
        path, query = unquote(self.raw_path), self.path.partition("?")[2]
        entry = {"method": self.command, "path": path, "query": query, "host": self.headers.get("Host")}
        self.storage.log({**entry, "token": self.token, "status": status})

    def _send(self, answer: Answer, truncated: bool) -> None:
        length = answer.length
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if truncated:
            length, self.close_connection = length // 2, True
        if self.command == "HEAD":
            return
        if isinstance(answer.content, bytes):
            self.wfile.write(answer.content[:length])
            return
        with answer.content.path.open("rb") as file:
            file.seek(answer.content.start)
            copy_stream(file, self.wfile, length)

    def log_message(self, *arguments: Any) -> None:
        """Silenced: the server keeps its own log."""

    def _answer(self) -> Answer:
        try:
            return self._routed()
        except HubError as error:
            return error_answer(error)
        except Exception:
            traceback.print_exc()
            return error_answer(HubError(500, "Internal Error"))

    def _routed(self) -> Answer:
        self.user = self.storage.users().get(self.token)
        if self.token is not None and self.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, access, answer in ROUTES:
            match = pattern.fullmatch(self.raw_path) if wanted == method else None
            if match:
                groups = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                if access is None:
                    return answer(self, **groups)
                self.kind = groups.pop("kind") or "model"
                return answer(self, self._repository(groups.pop("repo_id"), access), **groups)
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def _repository(self, repo_id: str, access: str) -> Repository:
        try:
            repository = self.storage.repository(self.kind, repo_id)
            if repository.state["private"] and not self._role(repo_id):
                raise HubError(404, "Repository not found", "RepoNotFound")
        except HubError as error:
            # Anonymous requests must not reveal whether a repository exists.
            raise error if self.user else HubError(401, "Invalid username or password.", "RepoNotFound") from None
        if access == "write":
            self._require_write(repo_id.partition("/")[0], "Forbidden: you may not write to this repository")
        return repository

    def _role(self, repo_id: str) -> str | None:
        namespace = repo_id.partition("/")[0]
        if self.user is None:
            return None
        return "admin" if self.user["name"] == namespace else dict(self.user["orgs"]).get(namespace)

    def _require_write(self, namespace: str, message: str) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user["role"] != "write":
            raise HubError(403, "Forbidden: you must use a write token to do this")
        if self._role(namespace) not in ("write", "admin"):
            raise HubError(403, message)

    def _json(self) -> Any:
        try:
            return json.load(self.body)
        except ValueError:
            raise HubError(400, "The body is not JSON") from None
