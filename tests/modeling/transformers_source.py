"""transformers' own common tests, from the source distribution of the transformers that is installed.

They belong to that version and are not part of this repository: run as a program (`make transformers-tests`), this
module has pip fetch them once into `.cache/transformers-tests`, where they are the package `transformers_tests`.
"""

import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

PACKAGE = "transformers_tests"
VERSION = importlib.metadata.version("transformers")
FOLDER = Path(__file__).parents[2] / ".cache" / "transformers-tests" / VERSION

# What the common tests import from modules that the source distribution leaves out.
STUBS: dict[str, dict[str, object]] = {
    # Tests of torch.export, onnx and the like, which the model tests inherit: none remain.
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    # Tests of generate(), which no vision encoder has: the model tests only check that nobody inherits them.
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # Values other than the defaults for the fields of every config, which must arrive in the config.
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "architectures": ["AnyModel"],
            "chunk_size_feed_forward": 5,
            "dtype": "float16",
            "id2label": {0: "label"},
            "label2id": {"label": 0},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
}


class TransformersTestsError(Exception):
    """pip could not fetch the source distribution of the installed transformers."""


def transformers_test_module(name: str) -> ModuleType:
    """Import a module of transformers' tests, for example `test_modeling_common`; `fetch` must have run before."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    for stub, names in STUBS.items():
        module = sys.modules.setdefault(f"{PACKAGE}.{stub}", ModuleType(f"{PACKAGE}.{stub}"))
        vars(module).update(names)
    return importlib.import_module(f"{PACKAGE}.{name}")


def fetch() -> None:
    """Download the package of tests into `FOLDER`, if it is not there yet.

    Raises:
        TransformersTestsError: pip could not fetch the source distribution of the installed transformers.
    """
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    # The rename makes the result complete or absent.
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as directory:
        archive = _download(Path(directory))
        _extract(archive, Path(directory) / VERSION / PACKAGE)
        (Path(directory) / VERSION).rename(FOLDER)


def _download(directory: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command = [*pip, "--dest", str(directory), f"transformers=={VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(directory.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        raise TransformersTestsError(
            f"pip could not download the source distribution of transformers {VERSION}: "
            f"{(result.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return archives[0]


def _extract(archive: Path, package: Path) -> None:
    """Write the modules of the archive's top-level `tests` folder, and no others, as a package."""
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    with tarfile.open(archive) as source:
        for member in source:
            path = Path(member.name)
            if member.isfile() and path.suffix == ".py" and len(path.parts) == 3 and path.parts[1] == "tests":
                (package / path.name).write_bytes(source.extractfile(member).read())


if __name__ == "__main__":
    try:
        fetch()
    except TransformersTestsError as error:
        sys.exit(str(error))
