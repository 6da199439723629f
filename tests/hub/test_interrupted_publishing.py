"""Publishing that fails at any of its requests leaves the old revision or the new one, and running the command again
succeeds."""

import pytest
from command_line import TOKEN
from huggingface_hub import CommitOperationAdd, HfApi
from test_publishing import assert_one_sentence, files_of, index_of, requests_since, staged

pytestmark = pytest.mark.xdist_group("preloaded")

TAG = "v1"
RETRY_WORDS = (
    "Retrying in",
    "Rate limited",
    "thrown while requesting",
    "while downloading",
    "Trying to",
    "Max retries",
)


def old_revision(server, repo_id, trained):
    """A repository with an earlier version of the model, which publishing replaces."""
    api = HfApi(endpoint=server.url, token=TOKEN)
    api.create_repo(repo_id)
    files = {"config.json": (trained / "config.json").read_bytes(), "README.md": b"an older card"}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    api.create_commit(repo_id, operations, commit_message="old")
    return files


@pytest.fixture(scope="module")
def requests(server, command_line, trained):
    """The requests of one publication with a tag."""
    old_revision(server, "org/fault-free", trained)
    before = len(server.requests())
    assert command_line.run("publish", trained, "org/fault-free", "--tag", TAG, token=TOKEN).code == 0
    requests = requests_since(server, before)
    assert [request["method"] for request in requests].count("PUT") == 1
    assert 15 <= len(requests) <= 25
    return requests


@pytest.fixture(scope="module")
def token_of(server):
    """One token per case, so that faults affect only one publication, and many can run in parallel."""

    def add(case):
        token = f"hf_{case:016d}{'x' * 16}"
        server.add_user(f"user{case}", token, orgs=[("org", "write")])
        return token

    return add


def assert_ends_in_one_sentence(result):
    """The client's messages about retries may come before it."""
    *before, last = result.stderr.splitlines(keepends=True)
    assert all(any(word in line for word in RETRY_WORDS) for line in before), result.stderr
    assert_one_sentence(result._replace(stderr=last))


def publish_all(command_line, trained, tokens):
    """Results by repository; the publications run in parallel."""
    started = {
        repo_id: command_line.start("publish", trained, repo_id, "--tag", TAG, token=token)
        for repo_id, token in tokens.items()
    }
    return {repo_id: command_line.wait(number) for repo_id, number in started.items()}


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "kind, when, first",
    # Each kind at every fourth request: together they are at each.
    [("drop", "after", 0), ("drop", "before", 1), (500, "after", 2), (429, "before", 3), (403, "before", 0)],
)
def test_persistent_faults(kind, when, first, server, command_line, requests, token_of, trained, tmp_path):
    """The Hub fails from each request on; then it recovers."""
    tokens, old, new, faults = {}, {}, {}, {}
    for at in range(first, len(requests), 4):
        repo_id, token = f"org/model-{kind}-{when}-{at}", token_of(at)
        tokens[repo_id], faults[repo_id] = token, at
        old[repo_id] = old_revision(server, repo_id, trained)
        (tmp_path / repo_id).mkdir(parents=True)
        new[repo_id] = staged(trained, repo_id, tmp_path / repo_id)
        server.fail(token, at, kind, when, times=None)
    committed = index_of("/commit/", requests)
    for repo_id, result in publish_all(command_line, trained, tokens).items():
        assert_ends_in_one_sentence(result)
        there, at = files_of(server, repo_id), faults[repo_id]
        assert there == (new if at > committed - (when == "after") else old)[repo_id], (repo_id, result)
        if "is unchanged" in result.stderr or "nothing was uploaded" in result.stderr:
            assert there == old[repo_id]
        elif "the files are published" in result.stderr:
            assert there == new[repo_id]
        else:
            assert "either all the old files or all the new ones" in result.stderr
        assert repo_id in result.stderr
    server.clear_faults()
    for repo_id, result in publish_all(command_line, trained, tokens).items():
        assert result.code == 0, result
        assert files_of(server, repo_id) == files_of(server, repo_id, TAG) == new[repo_id]


@pytest.mark.parametrize("kind", [503, pytest.param("drop", marks=pytest.mark.extensive)])
@pytest.mark.parametrize("part", ["/preupload/", "/objects/batch", "/_storage/", "/objects/verify", "/commit/"])
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.extensive), "after"])
def test_temporary_faults_are_retried(kind, part, when, server, command_line, requests, token_of, trained, tmp_path):
    repo_id = f"org/passing-{kind}-{part.strip('/_').replace('/', '-')}-{when}"
    old_revision(server, repo_id, trained)
    token = token_of(100)
    server.fail(token, index_of(part, requests), kind, when)
    result = command_line.run("publish", trained, repo_id, "--tag", TAG, token=token)
    server.clear_faults()
    assert result.code == 0, result
    assert files_of(server, repo_id) == staged(trained, repo_id, tmp_path)


def test_a_commit_with_a_wrong_response(server, command_line, requests, token_of, trained, tmp_path):
    """Only the contents of the repository matter."""
    old_revision(server, "org/wrong-answer", trained)
    server.fail(token_of(100), index_of("/commit/", requests), 403, "after")
    result = command_line.run("publish", trained, "org/wrong-answer", "--tag", TAG, token=token_of(100))
    server.clear_faults()
    assert result.code == 0, result
    assert files_of(server, "org/wrong-answer", TAG) == staged(trained, "org/wrong-answer", tmp_path)


@pytest.mark.end_to_end
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_hub_is_killed_and_restarted(when, server, command_line, requests, trained, tmp_path):
    """At each request that writes."""
    for at, request in enumerate(requests):
        if request["method"] == "GET":
            continue
        repo_id = f"org/killed-{when}-{at}"
        old = old_revision(server, repo_id, trained)
        (tmp_path / str(at)).mkdir()
        new = staged(trained, repo_id, tmp_path / str(at))
        server.fail(TOKEN, at, "kill", when)
        started = command_line.start("publish", trained, repo_id, "--tag", TAG, token=TOKEN)
        assert server.wait() == 137
        server.start()
        server.clear_faults()
        result = command_line.wait(started)
        there = files_of(server, repo_id)
        assert there in (old, new), f"{repo_id} holds {sorted(there)}"
        if result.code == 0:
            assert there == new
        else:
            assert_ends_in_one_sentence(result)
        assert command_line.run("publish", trained, repo_id, "--tag", TAG, token=TOKEN).code == 0
        assert files_of(server, repo_id) == files_of(server, repo_id, TAG) == new


@pytest.mark.end_to_end
def test_the_hub_is_killed_for_good(server, command_line, requests, trained):
    """During an upload: the command ends by itself."""
    old = old_revision(server, "org/lost", trained)
    server.fail(TOKEN, index_of("/_storage/", requests), "kill")
    result = command_line.run("publish", trained, "org/lost", "--tag", TAG, token=TOKEN)
    assert_ends_in_one_sentence(result)
    assert "the Hub cannot be reached" in result.stderr
    server.start()
    server.clear_faults()
    assert files_of(server, "org/lost") == old
