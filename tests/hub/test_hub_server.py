"""The test Hub against the real client, and against git and HTTP where the client does not check."""

import base64
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoFile,
    RepoFolder,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

MULTIPART_SIZE, PAGE_SIZE = 1000, 3
# Grouped by upload method.
CONTENTS = {
    "config.json": b'{"model_type": "vit"}',
    "folder/\N{GREEK SMALL LETTER PI} and %20.txt": b"\xcf\x80",
    "small.bin": bytes(range(200)),
    "unnamed": b"\0\xff" * 100,
    "folder/large.safetensors": hashlib.shake_256(b"large").digest(4 * MULTIPART_SIZE - 1),
    "empty.bin": b"",
}


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def started(directory: Path) -> HubServer:
    server = HubServer(directory, multipart_size=MULTIPART_SIZE, page_size=PAGE_SIZE).start()
    server.add_user("alice", "hf_alice", orgs=[("org", "write"), ("readers", "read")])
    server.add_user("alice", "hf_alice_read", role="read", orgs=[("org", "write")])
    server.add_user("bob", "hf_bob")
    return server


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = started(tmp_path_factory.mktemp("hub"))
    yield server
    server.stop()
    assert (server.directory / "errors.txt").read_text() == ""


@pytest.fixture
def mortal(tmp_path):
    """A server that tests may kill."""
    server = started(tmp_path / "hub")
    yield server
    server.stop()


def client(server: HubServer, token: str | bool = "hf_alice") -> HfApi:
    return HfApi(endpoint=server.url, token=token)


@pytest.fixture
def api(hub) -> HfApi:
    return client(hub)


@pytest.fixture
def repo(api, request) -> str:
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    return api.create_repo(f"org/{name[:80]}").repo_id


def additions(contents: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in contents.items()]


def add(api: HfApi, repo: str, contents: dict[str, bytes], **options) -> str:
    return api.create_commit(repo, additions(contents), commit_message="Add", **options).oid


def files(server: HubServer, repo: str, **options) -> dict[str, bytes]:
    """The files of a repository, without those that every new one has."""
    snapshot = server.snapshot(repo, **options)
    assert snapshot.pop(".gitattributes")
    return snapshot


def send(server: HubServer, method: str, path: str, token: str | None = "hf_alice", **options):
    """A raw request, without retries or redirects."""
    options = {"follow_redirects": False} | options
    headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    return get_session().request(method, server.url + path if path[0] == "/" else path, headers=headers, **options)


def commit_lines(*changes: tuple[str, dict]) -> bytes:
    lines = [("header", {"summary": "Change", "description": ""}), *changes]
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    command = ["git", "hash-object", "--stdin"]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().strip()


# -- Files


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_round_trip(hub, api, tmp_path, repo_type):
    options = {"repo_type": repo_type}
    api.create_repo("org/round_trip", space_sdk="static" if repo_type == "space" else None, **options)
    commit = add(api, "org/round_trip", CONTENTS, **options)
    assert files(hub, "org/round_trip", **options) == CONTENTS
    assert hub.head("org/round_trip", **options) == api.repo_info("org/round_trip", **options).sha == commit
    directory = Path(api.snapshot_download("org/round_trip", local_dir=tmp_path, **options))
    assert {path: (directory / path).read_bytes() for path in CONTENTS} == CONTENTS


def test_upload_methods(hub, api, repo):
    before = len(hub.requests())
    add(api, repo, CONTENTS)
    paths = [request["path"] for request in hub.requests()[before:] if request["path"].startswith("/_")]
    by_object = {
        path: [Path(used).name for used in paths if sha256(content) in used] for path, content in CONTENTS.items()
    }
    single, large = ([sha256(CONTENTS[path])] for path in ("small.bin", "folder/large.safetensors"))
    assert by_object.pop("folder/large.safetensors") == ["1", "2", "3", "4", *large]
    assert by_object.pop("small.bin") == single
    assert len(by_object.pop("unnamed")) == 1
    assert not any(by_object.values())


@pytest.mark.parametrize(
    "path, sample, size, mode",
    [
        ("text.txt", "\N{GREEK SMALL LETTER PI}".encode()[:1], 10_000_000, "regular"),
        ("text.txt", b"text", 10_000_001, "lfs"),
        ("text.safetensors", b"text", 4, "lfs"),
        ("no_text", b"\xff\xfe", 2, "lfs"),
        ("no_text", b"a\0b", 3, "lfs"),
    ],
)
def test_upload_method_of_each_file(hub, repo, path, sample, size, mode):
    body = {"files": [{"path": path, "sample": base64.b64encode(sample).decode(), "size": size}]}
    answer = send(hub, "POST", f"/api/models/{repo}/preupload/main", json=body).json()
    assert answer["files"] == [{"path": path, "uploadMode": mode, "shouldIgnore": False}]


def test_hashes_equal_those_of_git(hub, api, repo):
    add(api, repo, CONTENTS)
    shown = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    siblings = {file.rfilename: file for file in api.model_info(repo, files_metadata=True).siblings}
    for path, content in CONTENTS.items():
        entry, stored = shown[path], content
        assert entry.size == siblings[path].size == len(content)
        if entry.lfs:
            assert entry.lfs.sha256 == siblings[path].lfs.sha256 == sha256(content)
            size = len(content)
            stored = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {size}\n".encode()
            )
            assert entry.lfs.pointer_size == len(stored)
        assert entry.blob_id == siblings[path].blob_id == git_hash(stored)
        etag = api.get_hf_file_metadata(url=hf_hub_url(repo, path, endpoint=hub.url)).etag
        assert etag == (sha256(content) if entry.lfs else git_hash(content))


def test_downloads_in_other_processes(hub, api, repo, tmp_path):
    add(api, repo, CONTENTS)
    api.update_repo_settings(repo, private=True)
    script = (
        f"from huggingface_hub import snapshot_download\nsnapshot_download('{repo}', local_dir='{tmp_path}/python')"
    )
    commands = {
        "python": [sys.executable, "-c", script],
        "hf": [str(Path(sys.executable).with_name("hf")), "download", repo, "--local-dir", str(tmp_path / "hf")],
    }
    for name, command in commands.items():
        environment = hub.environment("hf_alice", tmp_path / f"{name}_home")
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        assert {path: (tmp_path / name / path).read_bytes() for path in CONTENTS} == CONTENTS


def test_environment_has_only_the_given_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_foreign")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_foreign")
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & hub.environment(home=tmp_path).keys()
    assert hub.environment("hf_alice")["HF_TOKEN"] == "hf_alice"


def test_all_kinds_of_changes(hub, api, repo):
    add(api, repo, CONTENTS)
    operations = [
        CommitOperationCopy("folder/large.safetensors", "copied/large.safetensors"),
        CommitOperationCopy("config.json", "copied/config.json"),
        CommitOperationDelete("folder/"),
        CommitOperationDelete("empty.bin"),
        *additions({"config.json": b"{}", "folder/new": b"new"}),
    ]
    api.create_commit(repo, operations, commit_message="Change", commit_description="much")
    assert files(hub, repo) == {
        "copied/large.safetensors": CONTENTS["folder/large.safetensors"],
        "copied/config.json": CONTENTS["config.json"],
        "config.json": b"{}",
        "folder/new": b"new",
        "small.bin": CONTENTS["small.bin"],
        "unnamed": CONTENTS["unnamed"],
    }
    newest, *_ = api.list_repo_commits(repo)
    assert (newest.commit_id, newest.title, newest.message) == (hub.head(repo), "Change", "much")


@pytest.mark.parametrize("missing", ["file", "folder/"])
def test_deleting_missing_files_changes_nothing(hub, api, repo, missing):
    head, operations = hub.head(repo), [*additions({"new": b"new"}), CommitOperationDelete(missing)]
    with pytest.raises(RemoteEntryNotFoundError, match="with this name doesn't exist"):
        api.create_commit(repo, operations, commit_message="Delete")
    assert hub.head(repo) == head


def test_unchanged_files_make_no_commit(hub, api, repo):
    head = add(api, repo, CONTENTS)
    assert add(api, repo, CONTENTS) == head
    before = len(hub.requests())
    assert add(api, repo, {**CONTENTS, "other.bin": CONTENTS["small.bin"]}) != head
    assert not [request for request in hub.requests()[before:] if request["path"].startswith("/_")]


def test_ignored_files_are_not_uploaded(hub, api, repo, tmp_path):
    for path in (".gitignore", "kept.txt", "debug.log", "runs/1/model.bin"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("*.log\n# A folder\nruns/\n")
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert files(hub, repo).keys() == {".gitignore", "kept.txt"}


# -- Revisions


def test_expected_parent(hub, api, repo):
    first, second = hub.head(repo), add(api, repo, {"a": b"1"})
    with pytest.raises(HfHubHTTPError) as caught:
        add(api, repo, {"a": b"2"}, parent_commit=first)
    assert caught.value.response.status_code == 412
    assert hub.head(repo) == second
    third = add(api, repo, {"a": b"2"}, parent_commit=second)
    fourth = add(api, repo, {"a": b"3"}, parent_commit=third[:7])
    assert hub.head(repo) == fourth
    assert len(api.list_repo_commits(repo)) == 4


def test_branches_and_tags(hub, api, repo):
    first = add(api, repo, {"a": b"1"})
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="feature/x", revision=first)
    on_branch = add(api, repo, {"a": b"branch"}, revision="feature/x")
    second = add(api, repo, {"a": b"2"})
    refs = api.list_repo_refs(repo)
    assert {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        "refs/heads/main": second,
        "refs/heads/feature/x": on_branch,
        "refs/tags/v1": first,
    }
    for revision, content in (("v1", b"1"), ("feature/x", b"branch"), (None, b"2"), (first, b"1"), (first[:8], b"1")):
        assert Path(api.hf_hub_download(repo, "a", revision=revision)).read_bytes() == content
    for create in (
        lambda **o: api.create_tag(repo, tag="v1", **o),
        lambda **o: api.create_branch(repo, branch="feature/x", **o),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            create()
        assert caught.value.response.status_code == 409
        create(exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="default branch"):
        api.delete_branch(repo, branch="main")
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="feature/x")
    refs = api.list_repo_refs(repo)
    assert [ref.name for ref in [*refs.branches, *refs.tags]] == ["main"]


def test_concurrent_commits(hub, api, repo):
    def commit_alone(number: int) -> str:
        lines = commit_lines(("file", {"path": str(number), "content": str(number)}))
        return send(hub, "POST", f"/api/models/{repo}/commit/main", content=lines).json()["commitOid"]

    with ThreadPoolExecutor(8) as pool:
        commits = [*pool.map(commit_alone, range(80))]
    assert files(hub, repo) == {str(number): str(number).encode() for number in range(80)}
    assert {commit.commit_id for commit in api.list_repo_commits(repo)} > set(commits)


def test_listings_are_paginated(hub, api, repo):
    contents = {f"{folder}/{name}": b"same" for folder in "ab" for name in ("x", "y/z", "y/zz", "b c")}
    add(api, repo, contents)
    before = len(hub.requests())
    shown = [*api.list_repo_tree(repo, recursive=True)]
    assert len(hub.requests()) - before == 5
    assert {entry.path for entry in shown if isinstance(entry, RepoFile)} == {*contents, ".gitattributes"}
    folders = {entry.path: entry.tree_id for entry in shown if isinstance(entry, RepoFolder)}
    assert folders.keys() == {"a", "b", "a/y", "b/y"}
    assert folders["a"] == folders["b"] != folders["a/y"] == folders["b/y"]
    assert {entry.path for entry in api.list_repo_tree(repo)} == {".gitattributes", "a", "b"}
    assert {entry.path for entry in api.list_repo_tree(repo, "a")} == {"a/x", "a/y", "a/b c"}
    assert [entry.path for entry in api.list_repo_tree(repo, "a/y", recursive=True)] == ["a/y/z", "a/y/zz"]
    paths = [entry.path for entry in api.get_paths_info(repo, ["a/b c", "absent", "b/y"])]
    assert paths == ["a/b c", "b/y"]
    for i in range(4):
        add(api, repo, {"a/x": bytes([65 + i])})
    add(api, repo, {"b/y/z": b"other"})
    changed = {entry.path: entry.tree_id for entry in api.list_repo_tree(repo) if isinstance(entry, RepoFolder)}
    assert changed["b"] not in (folders["b"], changed["a"])
    assert [len(commit.title) for commit in api.list_repo_commits(repo)] == [3] * 6 + [len("initial commit")]


# -- Permissions


def test_private_repositories(hub, api, repo):
    add(api, repo, CONTENTS)
    api.update_repo_settings(repo, private=True)
    assert api.model_info(repo).private
    for token, status in ((False, 401), ("hf_bob", 404)):
        for read in (HfApi.model_info, HfApi.list_repo_refs, lambda api, repo: api.hf_hub_download(repo, "small.bin")):
            with pytest.raises(RepositoryNotFoundError) as caught:
                read(client(hub, token), repo)
            assert caught.value.response.status_code == status
    api.update_repo_settings(repo, private=False)
    assert not client(hub, False).model_info(repo).private


def test_invalid_tokens(hub, api, repo):
    for path in ("/api/whoami-v2", f"/api/models/{repo}", f"/{repo}/resolve/main/.gitattributes"):
        answer = send(hub, "GET", path, "hf_wrong")
        assert answer.status_code == 401
        assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert send(hub, "GET", "/api/whoami-v2", None).status_code == 401
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"


def test_writing_needs_permission(hub, api, repo):
    head = hub.head(repo)
    for token, status in ((False, 401), ("hf_bob", 403), ("hf_alice_read", 403)):
        other = client(hub, token)
        writes = [
            partial(other.create_repo, "org/new"),
            partial(other.delete_repo, repo),
            partial(other.create_branch, repo, branch="new"),
            partial(other.update_repo_settings, repo, private=True),
            partial(add, other, repo, CONTENTS),
        ]
        for write in writes:
            with pytest.raises(HfHubHTTPError) as caught:
                write()
            assert caught.value.response.status_code == status
    assert send(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", "hf_bob", json={}).status_code == 403
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", "hf_bob", content=commit_lines()).status_code == 403
    with pytest.raises(HfHubHTTPError, match="under the namespace"):
        api.create_repo("readers/new")
    assert hub.head(repo) == head
    assert not api.model_info(repo).private


def test_gated_repositories(hub, api, repo, tmp_path):
    add(api, repo, CONTENTS)
    api.update_repo_settings(repo, gated="manual")
    for token, status in ((False, 401), ("hf_bob", 403)):
        other = client(hub, token)
        assert other.model_info(repo).gated == "manual"
        assert "small.bin" in other.list_repo_files(repo)
        for path in ("config.json", "small.bin"):
            with pytest.raises(GatedRepoError) as caught:
                other.hf_hub_download(repo, path, local_dir=tmp_path)
            assert caught.value.response.status_code == status
    assert api.hf_hub_download(repo, "small.bin", local_dir=tmp_path)
    hub.gate(repo, files="*.bin")
    assert client(hub, False).hf_hub_download(repo, "config.json", local_dir=tmp_path / "open")
    with pytest.raises(GatedRepoError):
        client(hub, False).hf_hub_download(repo, "small.bin", local_dir=tmp_path / "open")


def test_creation_and_deletion(hub, api):
    assert api.create_repo("mine").repo_id == "alice/mine"
    answer = send(hub, "POST", "/api/repos/create", json={"name": "mine"})
    assert (answer.status_code, answer.json()["url"]) == (409, f"{hub.url}/alice/mine")
    assert api.create_repo("mine", exist_ok=True).repo_id == "alice/mine"
    api.delete_repo("mine")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("alice/mine")
    api.delete_repo("alice/mine", missing_ok=True)
    assert api.create_repo("mine", private=True).repo_id == "alice/mine"
    assert api.model_info("alice/mine").private


@pytest.mark.parametrize(
    "name", ["..", "a..b", "a--b", "-a", "a.git", "a/b", "../../org", "a b", "\N{GREEK SMALL LETTER PI}", ""]
)
def test_invalid_names(hub, name):
    assert send(hub, "POST", "/api/repos/create", json={"name": name, "organization": "org"}).status_code == 400


# -- Refused requests


def test_missing_repositories_revisions_and_files(api, repo, tmp_path):
    missing = {
        RepositoryNotFoundError: [lambda: api.model_info("org/absent")],
        RevisionNotFoundError: [
            lambda: api.hf_hub_download(repo, "config.json", revision="absent", local_dir=tmp_path),
            lambda: api.model_info(repo, revision="absent"),
            lambda: api.create_tag(repo, tag="v", revision="absent"),
            lambda: add(api, repo, {"a": b""}, revision="absent"),
        ],
        RemoteEntryNotFoundError: [
            lambda: api.hf_hub_download(repo, "absent", local_dir=tmp_path),
            lambda: [*api.list_repo_tree(repo, "absent")],
        ],
    }
    for error, calls in missing.items():
        for call in calls:
            with pytest.raises(error):
                call()


def test_error_headers(hub, repo):
    absent = send(hub, "HEAD", f"/{repo}/resolve/main/absent").headers
    assert (absent["X-Error-Code"], absent["X-Repo-Commit"]) == ("EntryNotFound", hub.head(repo))
    injected = send(hub, "GET", f"/{repo}/resolve/a%0d%0aX-Injected:%20b%CF%80/c").headers
    assert injected["X-Error-Code"] == "RevisionNotFound"
    assert "X-Injected" not in injected


def test_paths_cannot_leave_the_directory(hub, repo):
    (hub.directory.parent / "state.json").write_text("{}")
    (hub.directory.parent / "secret").write_text("secret")
    ways = ["..", "%2e%2e", "..%2f..", "..%2f..%2f..%2f..", "%2e%2e%2f%2e%2e%2f%2e%2e"]
    for way in ways:
        for path in (f"/api/models/{way}", f"/api/models/org/{way}", f"/org/{way}/resolve/main/secret"):
            assert send(hub, "GET", path).status_code == 404
        for path in (f"/{repo}/resolve/main/{way}/secret", f"/{repo}/resolve/{way}/secret", f"/_cdn/{way}/secret"):
            assert send(hub, "GET", path).status_code in (403, 404)
    body = {"name": "secret", "organization": "org", "type": "../../../"}
    assert send(hub, "DELETE", "/api/repos/delete", json=body).status_code == 400
    objects = [{"oid": "../../secret", "size": 6}]
    answer = send(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", json={"objects": objects})
    assert answer.json()["objects"][0]["error"]["code"] == 422


@pytest.mark.parametrize(
    "changes, status",
    [
        ([("file", {"path": "../secret", "content": ""})], 400),
        ([("file", {"path": "a/.git/config", "content": ""})], 400),
        ([("file", {"path": "/a", "content": ""})], 400),
        ([("file", {"path": "a\nb", "content": ""})], 400),
        ([("file", {"path": "good/a", "content": ""})], 400),
        ([("file", {"path": "a", "content": "a" * 10_000_001})], 400),
        ([("lfsFile", {"path": "a", "oid": "0" * 64, "size": 1, "algo": "sha256"})], 400),
        ([("lfsFile", {"path": "a", "oid": "/dev/null", "algo": "sha256"})], 400),
        ([("file", {"path": "README.md", "content": "---\nlicense: mine\n---"})], 400),
        ([("deletedFile", {"path": "a"})], 404),
        ([("renamedFile", {"path": "a"})], 400),
    ],
)
def test_commits_are_atomic(hub, repo, changes, status):
    head, good = hub.head(repo), ("file", {"path": "good", "content": "good"})
    address = f"/api/models/{repo}/commit/main"
    assert send(hub, "POST", address, content=commit_lines(good, *changes)).status_code == status
    assert hub.head(repo) == head
    assert send(hub, "POST", address, content=commit_lines(good)).status_code == 200
    assert files(hub, repo) == {"good": b"good"}


def test_empty_commits_and_pull_requests(hub, api, repo):
    head = hub.head(repo)
    address = f"/api/models/{repo}/commit/main"
    assert send(hub, "POST", f"{address}?create_pr=1", content=commit_lines()).status_code == 400
    assert hub.head(repo) == head
    assert send(hub, "POST", address, content=commit_lines()).json()["commitOid"] == hub.head(repo) != head


def upload_instructions(server: HubServer, repo: str, content: bytes) -> dict:
    objects = [{"oid": sha256(content), "size": len(content)}]
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
    return send(server, "POST", f"/{repo}.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]


@pytest.mark.parametrize("uploaded", [b"other", b"conten", b"contentcontent", b""])
def test_uploads_with_wrong_content_are_refused(hub, repo, uploaded):
    actions = upload_instructions(hub, repo, b"content")
    identity = {"oid": sha256(b"content"), "size": 7}
    assert send(hub, "PUT", actions["upload"]["href"], None, content=uploaded).status_code == 400
    assert send(hub, "POST", actions["verify"]["href"], json=identity).status_code == 404
    assert send(hub, "PUT", actions["upload"]["href"], None, content=b"content").status_code == 200
    assert send(hub, "POST", actions["verify"]["href"], json=identity).status_code == 200
    assert send(hub, "POST", actions["verify"]["href"], json={**identity, "size": 8}).status_code == 400
    line = ("lfsFile", {"path": "a", "oid": sha256(b"content"), "size": 8})
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", content=commit_lines(line)).status_code == 400


def test_incomplete_multipart_uploads_are_refused(hub, repo):
    content = hashlib.shake_256(b"parts").digest(MULTIPART_SIZE + 1)
    upload = upload_instructions(hub, repo, content)["upload"]
    assert upload["header"].keys() == {"chunk_size", "00001", "00002"}
    chunks = {"00001": content[:MULTIPART_SIZE], "00002": content[MULTIPART_SIZE:]}

    def completed(etags: list[str]) -> int:
        parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
        return send(hub, "POST", upload["href"], None, json={"oid": sha256(content), "parts": parts}).status_code

    def put(number: str, chunk: bytes) -> str:
        return send(hub, "PUT", upload["header"][number], None, content=chunk).headers["ETag"]

    first = put("00001", chunks["00001"])
    assert completed([first]) == completed([first, first]) == 400
    assert completed([first, put("00002", b"?")]) == 400
    second = put("00002", chunks["00002"])
    assert completed([second, first]) == 400
    assert completed([first, second]) == 200
    assert (hub.directory / "repositories" / "models" / repo / "objects" / sha256(content)).read_bytes() == content


CARD = {"license": "mit", "pipeline_tag": "image-classification", "tags": ["liere"]}
METRIC = {"type": "accuracy", "value": 0.5}
RESULT = {"task": {"type": "image-classification"}, "dataset": {"type": "d", "name": "D"}, "metrics": [METRIC]}


@pytest.mark.parametrize(
    "metadata, message",
    [
        (CARD, None),
        (CARD | {"license": ["mit", "other"], "pipeline_tag": "video-classification"}, None),
        (CARD | {"model-index": [{"name": "m", "results": [RESULT]}]}, None),
        (CARD | {"license": "mine"}, '"license" must be one of'),
        (CARD | {"license": ["mit", 1.0]}, '"license" must be one of'),
        (CARD | {"pipeline_tag": "images"}, '"pipeline_tag" must be one of'),
        (CARD | {"pipeline_tag": ["image-classification"]}, '"pipeline_tag" must be one of'),
        (CARD | {"tags": "liere"}, '"tags" must be an array'),
        (["mit"], "must be a mapping"),
        (CARD | {"model-index": {}}, '"model-index" must be an array'),
        (CARD | {"model-index": [{"results": []}]}, '"model-index[0].name" is required'),
        (CARD | {"model-index": [{"name": "m"}]}, '"model-index[0].results" must be an array'),
        (CARD | {"model-index": [{"name": "m", "results": [{**RESULT, "task": {}}]}]}, "results[0].task.type"),
        (CARD | {"model-index": [{"name": "m", "results": [{**RESULT, "dataset": {"type": "d"}}]}]}, "dataset.name"),
        (CARD | {"model-index": [{"name": "m", "results": [{**RESULT, "metrics": [{"type": "a"}]}]}]}, "s[0].value"),
    ],
)
def test_card_metadata(hub, metadata, message):
    # JSON is valid YAML.
    answer = send(hub, "POST", "/api/validate-yaml", json={"content": f"---\n{json.dumps(metadata)}\n---\n# Title\n"})
    assert answer.status_code == (400 if message else 200)
    assert message is None or message in answer.json()["errors"][0]["message"]


def test_card_data_is_returned(api, repo):
    result = EvalResult("image-classification", "d", "D", "accuracy", 0.5)
    data = ModelCardData(model_name="m", eval_results=[result], library_name="transformers", **CARD)
    api.upload_file(
        repo_id=repo,
        path_in_repo="README.md",
        path_or_fileobj=str(ModelCard(f"---\n{data.to_yaml()}\n---\n")).encode(),
    )
    info = api.model_info(repo)
    assert (info.card_data.license, info.pipeline_tag, info.library_name) == (
        "mit",
        CARD["pipeline_tag"],
        "transformers",
    )
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        api.upload_file(repo_id=repo, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mine\n---\n")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id=repo, path_in_repo="README.md", path_or_fileobj=b"# Title\n")


# -- Downloads


@pytest.mark.parametrize("path", ["config.json", "small.bin"])
def test_ranges(hub, api, repo, path):
    content = CONTENTS[path]
    size = len(content)
    add(api, repo, CONTENTS)
    address = f"/{repo}/resolve/main/{path}"
    for asked, part in {
        "0-4": content[:5],
        "5-": content[5:],
        "-6": content[-6:],
        f"3-{size + 9}": content[3:],
    }.items():
        answer = send(hub, "GET", address, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
        assert (answer.status_code, answer.content) == (206, part)
        first = content.index(part)
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/{size}"
    answer = send(hub, "GET", address, headers={"Range": f"bytes={size}-"}, follow_redirects=True)
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    answer = send(hub, "HEAD", address, follow_redirects=True)
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, str(size), b"")


@pytest.mark.parametrize("path", ["config.json", "folder/large.safetensors"])
def test_truncated_downloads_are_resumed(hub, api, repo, tmp_path, monkeypatch, path):
    # Data that the client has not written when the connection ends is lost.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 5)
    add(api, repo, CONTENTS)
    # The client requests the file's metadata and then the file.
    hub.fail("hf_alice", at=1, kind="truncate")
    before = len(hub.requests())
    assert Path(api.hf_hub_download(repo, path, local_dir=tmp_path)).read_bytes() == CONTENTS[path]
    assert [request["status"] for request in hub.requests()[before + 1 :]] == [200, 206]


def test_tokens_stay_with_the_hub(hub, api, repo, tmp_path):
    before = len(hub.requests())
    add(api, repo, CONTENTS)
    api.snapshot_download(repo, local_dir=tmp_path)
    send(hub, "GET", f"/{repo}/resolve/main/small.bin", follow_redirects=True)
    requests = hub.requests()[before:]
    signed = [request for request in requests if request["path"].startswith("/_")]
    assert {request["path"].split("/")[1] for request in signed} == {"_cdn", "_storage", "_complete"}
    assert {request["token"] for request in signed} == {None}
    elsewhere = {request["host"] for request in signed if not request["path"].startswith("/_complete")}
    assert elsewhere == {f"localhost:{hub.port}"}
    assert {request["token"] for request in requests if request not in signed} == {"hf_alice"}
    location = send(hub, "HEAD", f"/{repo}/resolve/main/small.bin").headers["Location"]
    assert send(hub, "GET", location, None).content == CONTENTS["small.bin"]
    assert send(hub, "GET", location, "hf_alice").status_code == 400


# -- Faults


def test_fault_statuses(hub, repo):
    address = f"/api/models/{repo}"
    hub.fail("hf_bob", at=1, kind=429, times=2, retry_after=7)
    answers = [send(hub, "GET", address, "hf_bob") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert answers[1].headers["Retry-After"] == "7"
    assert hub.requests_of("hf_bob") == 4
    hub.fail("hf_bob", at=0, kind=500, times=None)
    assert hub.requests_of("hf_bob") == 0
    answers = [send(hub, "GET", address, token) for token in ("hf_bob", "hf_alice", None, "hf_bob")]
    assert [answer.status_code for answer in answers] == [500, 200, 200, 500]
    hub.clear_faults()
    assert send(hub, "GET", address, "hf_bob").status_code == 200
    assert hub.requests_of("hf_bob") == 3
    hub.fail(None, at=0, kind=503)
    assert [send(hub, "GET", address, token).status_code for token in ("hf_bob", None, None)] == [200, 503, 200]
    assert [request["status"] for request in hub.requests()[-3:]] == [200, 503, 200]


@pytest.mark.parametrize("kind", ["drop", 500])
@pytest.mark.parametrize("when", ["before", "after"])
def test_faults_before_and_after_a_commit(hub, repo, kind, when):
    head = hub.head(repo)
    hub.fail("hf_alice", at=0, kind=kind, when=when)
    try:
        status = send(hub, "POST", f"/api/models/{repo}/commit/main", content=commit_lines()).status_code
    except Exception as error:
        assert type(error).__name__ == "RemoteProtocolError"
        status = "drop"
    assert status == kind
    assert (hub.head(repo) != head) == (when == "after")
    assert send(hub, "GET", "/api/whoami-v2").status_code == 200


def test_signed_urls_count_for_their_token(hub, api, repo):
    add(api, repo, CONTENTS)
    location = send(hub, "HEAD", f"/{repo}/resolve/main/small.bin").headers["Location"]
    hub.fail("hf_alice", at=1, kind=403)
    assert [send(hub, "GET", location, None).status_code for _ in range(3)] == [200, 403, 200]
    assert hub.requests_of("hf_alice") == 3


def test_unknown_faults(hub):
    with pytest.raises(ValueError, match="unknown fault 'explode'"):
        hub.fail("hf_alice", at=0, kind="explode")


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_during_a_commit(mortal, when):
    api = client(mortal)
    api.create_repo("org/m")
    first = add(api, "org/m", CONTENTS)
    # The client requests the upload methods, then the commit.
    mortal.fail("hf_alice", at=1, kind="kill", when=when)
    with pytest.raises(Exception, match="disconnected"):
        add(api, "org/m", {"config.json": b"new", "new": b"new"})
    assert mortal.wait() == 137
    after = CONTENTS | ({"config.json": b"new", "new": b"new"} if when == "after" else {})
    assert files(mortal, "org/m") == after
    port = mortal.port
    mortal.start()
    assert mortal.port == port
    assert (api.model_info("org/m").sha == first) == (when == "before")
    assert add(api, "org/m", {"config.json": b"new", "new": b"new"}) == mortal.head("org/m")
    assert files(mortal, "org/m") == CONTENTS | {"config.json": b"new", "new": b"new"}


def test_state_survives_being_killed(mortal):
    api = client(mortal)
    api.create_repo("org/m", private=True)
    content = hashlib.shake_256(b"kept").digest(MULTIPART_SIZE + 1)
    upload = upload_instructions(mortal, "org/m", content)["upload"]
    parts = [content[:MULTIPART_SIZE], content[MULTIPART_SIZE:]]
    etags = [send(mortal, "PUT", upload["header"]["00001"], None, content=parts[0]).headers["ETag"]]
    mortal.fail("hf_alice", at=2, kind=403)
    mortal.kill()
    mortal.start()
    etags.append(send(mortal, "PUT", upload["header"]["00002"], None, content=parts[1]).headers["ETag"])
    completed = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
    assert send(mortal, "POST", upload["href"], None, json={"parts": completed}).status_code == 200
    assert send(mortal, "GET", "/api/models/org/m").status_code == 403
    assert api.model_info("org/m").private
    line = ("lfsFile", {"path": "m.bin", "oid": sha256(content), "size": len(content)})
    assert send(mortal, "POST", "/api/models/org/m/commit/main", content=commit_lines(line)).status_code == 200
    assert files(mortal, "org/m") == {"m.bin": content}


def test_truncated_uploads_are_refused(mortal):
    import socket

    client(mortal).create_repo("org/m")
    head = mortal.head("org/m")
    lines = commit_lines(("file", {"path": "a", "content": "a"}))
    request = (
        f"POST /api/models/org/m/commit/main HTTP/1.1\r\nHost: {mortal.url}\r\nAuthorization: Bearer hf_alice\r\n"
    )
    with socket.create_connection(("127.0.0.1", mortal.port)) as connection:
        # All lines are complete, but Content-Length announced more.
        connection.sendall(f"{request}Content-Length: {len(lines) + 1}\r\n\r\n".encode() + lines)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    assert mortal.head("org/m") == head


def test_servers_have_separate_directories(tmp_path):
    with HubServer(tmp_path / "first") as first, HubServer(tmp_path / "second") as second:
        for server in (first, second):
            server.add_user("alice", "hf_alice")
        client(first).create_repo("alice/m")
        assert client(first).repo_exists("alice/m")
        assert not client(second).repo_exists("alice/m")
