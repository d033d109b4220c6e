"""Writes files so that they are there whole or not at all, however a run ends."""

import json
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Write json so that it is there whole or not at all."""
    write_atomically(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
