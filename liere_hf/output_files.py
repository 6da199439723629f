"""Files of results, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()
