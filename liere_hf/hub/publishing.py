"""Publication of a checkpoint on the Hub, in one commit."""

import json
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from rich.console import Console
from rich.table import Table
from transformers.utils import CONFIG_NAME

from ..cards import build_model_card, build_space_card
from ..errors import InputError, RunError
from ..run_directory import read_checkpoint
from ..version import __version__
from .staging import folder_in_space, stage, stage_space

T = TypeVar("T")
# Files that the Hub creates or that people add by hand: a repository with only these holds no model yet.
NEUTRAL_FILES = {".gitattributes", REPOCARD_NAME, "LICENSE"}
# Fields of config.json that may differ between two versions of the same model.
_VERSION_FIELDS = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "auto_map"}
_NOTHING = "nothing was uploaded"
# What git allows, after git-check-ref-format.
_REFERENCE = re.compile(r"(?![-./]|.*(?:\.\.|//|/\.|@\{|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")


class Publication(NamedTuple):
    """Where a checkpoint was published; `changed` is False if the repository already held identical files."""

    url: str
    commit: str
    changed: bool


def publish(
    directory: Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    space: bool = False,
) -> Publication:
    """Publish a finished run or a converted model: weights, configuration, code, processor, card, recipe and metrics.

    A single commit replaces all files of the repository, so that it never holds a mixture of two versions. Files that
    the repository already holds are not uploaded again.

    Args:
        directory: of the run or of the converted model.
        repo_id: `ORG/NAME`; the repository is created if it does not exist.
        private: create it as a private repository.
        revision: a branch, created if it does not exist (default: `main`).
        tag: to set on the published commit.
        overwrite: replace another model in the repository.
        token: used instead of HF_TOKEN or of the token stored by `hf auth login`.
        space: publish the page of `liere-hf app` with the model instead, as a Space.

    Raises:
        InputError: the run is not finished, a name or the token is not valid, or the repository holds another model.
        RunError: the Hub cannot be reached or fails; the message says what the repository holds now.
    """
    require_repo_id(repo_id)
    _require_references(revision, tag)
    checkpoint = read_checkpoint(directory)
    with tempfile.TemporaryDirectory(prefix="liere_hf-") as folder:
        (stage_space if space else stage)(checkpoint, Path(folder), repo_id)
        target = Target(repo_id, revision, token, "space" if space else "model")
        with target.explaining_errors():
            target.prepare(checkpoint.config, private, overwrite)
            (build_space_card if space else build_model_card)(checkpoint, repo_id).validate()
            target.require_free_tag(tag, Path(folder))
            return target.upload(Path(folder), build_model_card(checkpoint).data.model_name, tag)


def preview(
    directory: Path, repo_id: str, space: bool = False, revision: str | None = None, tag: str | None = None
) -> None:
    """Print what `publish` would upload, the files with their sizes and the card, without contacting the Hub.

    Raises:
        InputError: as `publish`, except for what only the Hub knows.
    """
    require_repo_id(repo_id)
    _require_references(revision, tag)
    with tempfile.TemporaryDirectory(prefix="liere_hf-") as folder:
        (stage_space if space else stage)(read_checkpoint(directory), Path(folder), repo_id)
        table = Table("file", "bytes", title=repo_id)
        for name, path in sorted(_files_of(Path(folder)).items()):
            table.add_row(name, f"{path.stat().st_size:,}")
        Console().print(table)
        print((Path(folder) / REPOCARD_NAME).read_text())


def require_repo_id(repo_id: str) -> None:
    """
    Raises:
        InputError: the name is not of the form ORG/NAME, or has characters that the Hub does not allow.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"repository {repo_id!r} is not allowed: {' '.join(str(error).split())}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"repository {repo_id!r} is not allowed: it must be ORG/NAME")


def _require_references(revision: str | None, tag: str | None) -> None:
    """
    Raises:
        InputError: git does not allow such a branch or tag, which the Hub would find out after an upload.
    """
    for field, name in (("revision", revision), ("tag", tag)):
        if name is not None and not _REFERENCE.fullmatch(name):
            raise InputError(f"{field} is {name!r}, allowed are names that git takes, such as main or v1.0")


def full_repo_id(name: str, token: str | None = None) -> str:
    """`ORG/NAME` unchanged; a name without an organization gets the user of the token as one."""
    if "/" in name:
        require_repo_id(name)
        return name
    target = Target(name, token=token)
    with target.explaining_errors():
        return f"{target.api.whoami()['name']}/{name}"


class Target:
    """The branch of a repository to which a model is published; `state` says what it holds, for error messages.

    Args:
        kind: of the repository, `model` or `space`.
    """

    def __init__(self, repo_id: str, revision: str | None = None, token: str | None = None, kind: str = "model"):
        _require_references(revision, None)
        self.repo_id = repo_id
        self._kind = {"repo_type": kind}
        self._folder = f"{folder_in_space(repo_id)}/" if kind == "space" else ""
        self.revision = revision or "main"
        self.api = HfApi(token=token, library_name="liere_hf", library_version=__version__)
        self.state = _NOTHING

    def prepare(self, config: dict[str, Any], private: bool = False, overwrite: bool = False) -> None:
        """Check the token, create repository and branch if they do not exist; before anything is uploaded.

        Raises:
            InputError: the repository holds another model (unless `overwrite`), or is public despite `private`.
        """
        self._ask(self.api.whoami)
        try:
            is_private = self._ask(self.api.repo_info, self.repo_id, **self._kind).private
        except RepositoryNotFoundError:
            sdk = {"space_sdk": "gradio"} if self._folder else {}
            self._ask(self.api.create_repo, self.repo_id, private=private, exist_ok=True, **self._kind, **sdk)
        else:
            if private and not is_private:
                raise InputError(f"{self.repo_id} exists and is public: --private is for new repositories")
            if not overwrite:
                self._require_same_model(config)
        if self.revision != "main":
            self._ask(self.api.create_branch, self.repo_id, branch=self.revision, exist_ok=True, **self._kind)

    def require_free_tag(self, tag: str | None, folder: Path) -> None:
        """
        Raises:
            InputError: the repository has the tag already, on other files.
        """
        if tag is None:
            return
        tags = {reference.name for reference in self._ask(self.api.list_repo_refs, self.repo_id, **self._kind).tags}
        if tag in tags and not self.holds(folder, tag):
            raise InputError(f"{self.repo_id} already has the tag {tag}, on other files: choose another tag")

    def upload(self, folder: Path, message: str, tag: str | None = None) -> Publication:
        """Upload all files of `folder` in one commit, which removes all other files."""
        self.state = _NOTHING
        head = self._ask(self.api.repo_info, self.repo_id, revision=self.revision, **self._kind).sha
        changed = not self.holds(folder)
        if changed:
            self._commit(folder, message, head)
        self.state = f"the files are published{f', the tag {tag} is not set' if tag else ''}"
        commit = self._ask(self.api.repo_info, self.repo_id, revision=self.revision, **self._kind).sha
        if tag is not None:
            self._ask(self.api.create_tag, self.repo_id, tag=tag, revision=commit, exist_ok=True, **self._kind)
        page = f"{self.api.endpoint}/{'spaces/' if self._folder else ''}{self.repo_id}"
        return Publication(f"{page}/tree/{tag or self.revision}", commit, changed)

    def _commit(self, folder: Path, message: str, head: str) -> None:
        for is_last in (False, False, True):
            self.state = f"{self.repo_id} holds either all the old files or all the new ones"
            try:
                self.api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    revision=self.revision,
                    commit_message=message,
                    delete_patterns="*",
                    parent_commit=head,
                    **self._kind,
                )
                return
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                # The commit may have succeeded although its response was lost.
                if self.holds(folder):
                    return
                self.state = f"{self.repo_id} is unchanged"
                if is_last or not _is_transient(error):
                    raise

    def _ask(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Make a call that the client does not retry itself: up to three times while the Hub cannot be reached."""
        for wait in (1, 2):
            try:
                return call(*args, **kwargs)
            except HTTPError as error:
                if not _is_transient(error):
                    raise
            time.sleep(wait)
        return call(*args, **kwargs)

    def holds(self, folder: Path, revision: str | None = None) -> bool:
        """Whether the repository holds exactly the files of `folder`, byte for byte, except .gitattributes."""
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision or self.revision, **self._kind)
        there = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in tree
            if isinstance(entry, RepoFile) and entry.path != ".gitattributes"
        }
        here = _files_of(folder)
        return there.keys() == here.keys() and all(there[name] in _hashes(path) for name, path in here.items())

    def _require_same_model(self, config: dict[str, Any]) -> None:
        way_out = "choose another name, or replace it with --overwrite"
        revision, config_file = self._existing_revision(), f"{self._folder}{CONFIG_NAME}"
        files = set(self.api.list_repo_files(self.repo_id, revision=revision, **self._kind)) - NEUTRAL_FILES
        if not files:
            return
        if config_file not in files:
            raise InputError(f"{self.repo_id} holds other files ({', '.join(sorted(files)[:3])}): {way_out}")
        with tempfile.TemporaryDirectory(prefix="liere_hf-") as folder:
            path = self.api.hf_hub_download(
                self.repo_id, config_file, revision=revision, local_dir=folder, **self._kind
            )
            there = json.loads(Path(path).read_text())
        for name in sorted((there.keys() | config.keys()) - _VERSION_FIELDS):
            if there.get(name) != config.get(name):
                raise InputError(
                    f"{self.repo_id} holds another model ({name} is {there.get(name)!r} there, {config.get(name)!r} "
                    f"here): {way_out}"
                )

    def _existing_revision(self) -> str:
        try:
            self._ask(self.api.repo_info, self.repo_id, revision=self.revision, **self._kind)
        except RevisionNotFoundError:
            return "main"
        return self.revision

    @contextmanager
    def explaining_errors(self):
        """Turns the client's errors into one sentence: what happened, what the repository holds, what to do."""
        try:
            yield
        except (InputError, RunError):
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            kind, happened, advice = _explain(error, self.repo_id)
            raise kind(f"{happened}; {self.state}; {advice}") from error


def _files_of(folder: Path) -> dict[str, Path]:
    """All files by their paths below the folder."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _hashes(path: Path) -> tuple[str, str]:
    """The two hashes by which the Hub may list a file: git's, and SHA-256 for large files."""
    with path.open("rb") as file:
        large = sha_fileobj(file).hex()
    return git_hash(path.read_bytes()), large


_ANSWERS: dict[int, tuple[type[Exception], str, str]] = {
    401: (InputError, "the Hub does not accept the token", "set HF_TOKEN to a valid one or run `hf auth login`"),
    403: (InputError, "the token has no write access", "use one that has, or another namespace"),
    404: (InputError, "the Hub finds no such repository with this token", "check the name and the token's access"),
    412: (RunError, "someone else changed the repository meanwhile", "run the command again"),
    429: (RunError, "the Hub got too many requests", "run the command again in a few minutes"),
}


def _is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    return _explain(error, "")[0] is RunError


def _explain(error: Exception, repo_id: str) -> tuple[Callable[[str], Exception], str, str]:
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, LocalTokenNotFoundError):
        return InputError, "no Hub token was found", "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, OfflineModeIsEnabled):
        return InputError, "HF_HUB_OFFLINE is set", "unset it to publish"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        kind, happened, advice = _ANSWERS.get(
            status,
            (RunError, "the Hub has an internal error", "run the command again later")
            if status >= 500
            else (InputError, "the Hub refuses the request", "check the name and the token's access"),
        )
        return kind, f"{repo_id}: {happened} (HTTP {status})", advice
    if isinstance(error, HTTPError | OSError):
        return RunError, f"{repo_id}: the Hub cannot be reached ({type(error).__name__})", "run the command again"
    return InputError, f"{repo_id}: {' '.join(str(error).split())}", "correct it and run the command again"
