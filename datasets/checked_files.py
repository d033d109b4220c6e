"""Checks what stands in files, and writes files so that they are there whole or not at all."""

import json
import os
import reprlib
from pathlib import Path
from typing import Any


def check(valid: bool, where: str, found: Any, expected: str) -> None:
    """Raise a ValueError that names what stands at a position of a file, unless it is valid."""
    if not valid:
        raise ValueError(f"{where}: expected {expected}, found {reprlib.repr(found)}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Write json so that it is there whole or not at all."""
    write_atomically(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
