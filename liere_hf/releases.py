"""The list of releases: the checkpoints that this project publishes, each with its recipe, metrics and hashes.

An entry is trained (`recipe`, and `checkpoint` if it is committed) or converted (`from`, `source`, `options`).
`liere-hf release --update` writes what was measured into the list, and the cards beside it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub.constants import REPOCARD_NAME
from rich.console import Console
from rich.table import Table
from transformers.dynamic_module_utils import get_relative_import_files

from .cards import build_model_card
from .configuration import parse_flags, parse_recipe
from .configuration.metric_names import measured
from .conversion import ConversionOptions, convert
from .conversion.convert import SOURCES
from .errors import InputError, RunError
from .hub.publishing import publish, require_repo_id
from .hub.staging import CODE, MODELING, stage
from .output_files import sha256, write_bytes
from .run_directory import CONVERSION_FILE, Conversion, Run, encoding_title, read_checkpoint
from .training.run import train

HEADER = """\
# The checkpoints that this project releases. Written by people: organization, name, checkpoint, recipe, from, source,
# options. Written by `liere-hf release --update`: the rest, and the cards beside this file. `code` is part of each.
"""
# Where models are converted or trained that are not committed.
BUILD_DIRECTORY = Path("runs") / "releases"


@dataclass
class Release:
    """An entry of the list, the directory of its model, and the file that it is converted from."""

    entry: dict[str, Any]
    repo_id: str
    directory: Path
    source: Path | None


@dataclass
class Releases:
    """A list of releases; `unavailable` names those whose source file is missing."""

    path: Path
    content: dict[str, Any]
    available: list[Release]
    unavailable: list[str]


def read_releases(path: Path, sources: Path | None = None, organization: str | None = None) -> Releases:
    """
    Args:
        path: of the list; directories in it are relative to the parent of its folder.
        sources: directory of the files that entries are converted from.
        organization: replaces that of the list.

    Raises:
        InputError: the list is missing or is not a list of releases, or an entry lacks a field.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"release list {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("releases"), list):
        raise InputError(f"release list {path} must hold an organization and a list of releases")
    root, available, unavailable = path.resolve().parents[1], [], []
    for entry in content["releases"]:
        _require_entry(entry, path)
        name = entry["name"]
        repo_id = f"{organization or content.get('organization')}/{name}"
        require_repo_id(repo_id)
        source = sources / entry["source"] if sources and "source" in entry else None
        directory = root / entry.get("checkpoint", BUILD_DIRECTORY / name)
        if "from" in entry and not (source and source.is_file()):
            unavailable.append(name)
            continue
        available.append(Release(entry, repo_id, directory, source))
    return Releases(path, content, available, unavailable)


def _require_entry(entry: Any, path: Path) -> None:
    """
    Raises:
        InputError: not an entry, or one with a missing field or with one of another kind than it must be.
    """
    name = entry.get("name") if isinstance(entry, dict) else entry
    if not isinstance(entry, dict) or not name or ("recipe" in entry) == ("from" in entry):
        raise InputError(f"release list {path} has the entry {name!r}: it needs a name, and either recipe or from")
    kinds = {"options": dict, "files": dict} | dict.fromkeys(("name", "checkpoint", "recipe", "from", "source"), str)
    for field, kind in kinds.items():
        if field in entry and not isinstance(entry[field], kind):
            allowed = "a mapping" if kind is dict else "text"
            raise InputError(
                f"release list {path} has the entry {name!r} with {field} {entry[field]!r}, allowed is {allowed}"
            )
    if "from" in entry and not ("source" in entry and entry["from"] in SOURCES):
        raise InputError(
            f"release list {path} has the entry {name!r}: it needs a source, and from is one of {', '.join(SOURCES)}"
        )


def build(release: Release) -> Run | Conversion:
    """The checkpoint of a release: the committed one, or one that is converted or, if not yet done, trained now."""
    if "from" in release.entry and "checkpoint" not in release.entry:
        shutil.rmtree(release.directory, ignore_errors=True)
    if not release.directory.exists():
        _build_anew(release)
    return read_checkpoint(release.directory)


def _build_anew(release: Release) -> None:
    entry, options = release.entry, release.entry.get("options", {})
    if "from" in entry:
        flags = [text for name, value in options.items() for text in (f"--{name}", *_words(value))]
        convert(str(release.source), release.directory, entry["from"], parse_flags(ConversionOptions, flags))
        return
    flags = [text for name, value in options.items() for text in (f"--{name}", *_words(value))]
    train(*parse_recipe(entry["recipe"], [*flags, "--output_dir", str(release.directory)]))


def _words(value: Any) -> list[str]:
    """The value of an option as on the command line."""
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def describe(release: Release, checkpoint: Run | Conversion) -> dict[str, Any]:
    """The fields of an entry that come from the checkpoint: encoding, size, seed, metrics, SHA-256 of the files."""
    if isinstance(checkpoint, Run):
        seed, num_parameters = checkpoint.recipe["seed"], checkpoint.training["num_parameters"]
        metrics = measured(checkpoint.metrics)
    else:
        seed, num_parameters = None, checkpoint.record["num_parameters"]
        metrics = {"largest_logit_difference": checkpoint.record["largest_logit_difference"]}
    return {
        "encoding": encoding_title(checkpoint.config),
        "num_parameters": num_parameters,
        "seed": seed,
        "metrics": metrics,
        "files": {name: digest for name, digest in _staged(release, checkpoint).items() if name not in CODE},
    }


def _staged(release: Release, checkpoint: Run | Conversion) -> dict[str, str]:
    """SHA-256 of every file that would be published, except the card and the record of a conversion.

    The measurements in these differ in their last digits between machines.
    """
    with TemporaryDirectory(prefix="liere_hf-") as folder:
        stage(checkpoint, Path(folder), release.repo_id)
        return {
            path.name: sha256(path)
            for path in sorted(Path(folder).iterdir())
            if path.name not in (REPOCARD_NAME, CONVERSION_FILE)
        }


def update_releases(releases: Releases) -> None:
    """Write the measured fields into the list, the cards beside it, and the current code into each checkpoint."""
    for release in releases.available:
        checkpoint = build(release)
        _renew_code(release.directory)
        release.entry.update(describe(release, checkpoint))
        card = str(build_model_card(checkpoint, release.repo_id)).encode()
        write_bytes(release.directory / REPOCARD_NAME, card)
        write_bytes(releases.path.parent / f"{release.entry['name']}.md", card)
    code = {"code": {name: sha256(MODELING / name) for name in CODE}}
    releases.content = {
        "organization": releases.content["organization"],
        **code,
        "releases": releases.content["releases"],
    }
    content = HEADER + yaml.safe_dump(releases.content, sort_keys=False, width=119)
    write_bytes(releases.path, content.encode())
    _report(dict.fromkeys(releases.unavailable, "its source is missing, unchanged"))


def _renew_code(directory: Path) -> None:
    """Replace the code of a checkpoint by the current one: all modules that it imports, and no module that is gone."""
    modules = [MODELING / name for name in CODE if (directory / name).is_file()]
    imported = [Path(file) for module in modules for file in get_relative_import_files(module)]
    for module in {*modules, *imported}:
        shutil.copyfile(module, directory / module.name)
    for path in directory.glob("*.py"):
        if path.name not in CODE:
            path.unlink()


def publish_releases(releases: Releases, private: bool = False, dry_run: bool = False) -> None:
    """Build and check all releases whose source is available, then publish each unless the Hub has it already.

    Raises:
        InputError: a file differs from the list; nothing is published.
        RunError: some could not be published; the others were.
    """
    for release in releases.available:
        _require_listed_files(release, releases.content.get("code", {}), _staged(release, build(release)))
    outcomes = dict.fromkeys(releases.unavailable, "skipped: its source is missing")
    failures = []
    for release in releases.available:
        name = release.entry["name"]
        if dry_run:
            outcomes[name] = "would be published"
            continue
        try:
            publication = publish(release.directory, release.repo_id, private=private)
            outcomes[name] = f"{'published' if publication.changed else 'unchanged'}: {publication.url}"
        except (InputError, RunError) as error:
            outcomes[name] = f"failed: {error}"
            failures.append(name)
    _report(outcomes)
    if failures:
        raise RunError(
            f"{len(failures)} of {len(releases.available)} releases failed ({', '.join(failures)}); run the command "
            "again, those that are published already are skipped"
        )


def _require_listed_files(release: Release, code: dict[str, str], files: dict[str, str]) -> None:
    listed = release.entry.get("files", {}) | {name: digest for name, digest in code.items() if name in files}
    for name in sorted(files.keys() | listed.keys()):
        if files.get(name) != listed.get(name):
            raise InputError(
                f"release {release.entry['name']}: {name} of {release.directory} is not the listed one (sha256 "
                f"{files.get(name)}, listed {listed.get(name)}); nothing was published; --update writes it into the "
                "list"
            )


def _report(outcomes: dict[str, str]) -> None:
    if not outcomes:
        return
    table = Table("release", "outcome")
    for name, outcome in outcomes.items():
        table.add_row(name, outcome)
    Console(soft_wrap=True).print(table)
