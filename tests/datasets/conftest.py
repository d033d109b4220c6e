"""What the tests of the programs in datasets/ share: a resource file of Qt, and cut-outs."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest


def rcc_bytes(files: dict[str, bytes], version: int = 2, packed: frozenset[str] = frozenset()) -> bytes:
    """A Qt resource file as the format describes it, with nested folders; ``packed`` files are packed with zlib."""
    tree: dict = {}
    for path, content in files.items():
        *folders, last = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = content

    nodes, names, data = [], b"", b""
    queue = [("", tree, "")]
    first_free = 1
    while queue:
        name, entry, parent = queue.pop(0)
        path = f"{parent}/{name}".strip("/")
        name_offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(entry, dict):
            nodes.append(struct.pack(">IHII", name_offset, 2, len(entry), first_free))
            first_free += len(entry)
            queue += [(child, content, path) for child, content in entry.items()]
        else:
            flags = 1 if path in packed else 0
            content = struct.pack(">I", len(entry)) + zlib.compress(entry) if flags else entry
            nodes.append(struct.pack(">IHHHI", name_offset, flags, 0, 0, len(data)))
            data += struct.pack(">I", len(content)) + content
    if version >= 2:
        nodes = [node + bytes(8) for node in nodes]
    body = b"".join(nodes)
    start = 20
    header = b"qres" + struct.pack(">4I", version, start, start + len(body), start + len(body) + len(data))
    return header + body + data + names


@pytest.fixture(scope="session")
def make_rcc() -> Callable[..., bytes]:
    return rcc_bytes


@pytest.fixture
def make_cut_out() -> Callable:
    """A rectangle of one colour, at full size: ``make_cut_out("crow", (20, 10))``."""
    from scenes.composer import Category, CutOut
    from scenes.text import article_of, colour_of, plural_of

    def make(name: str, sides=(20, 20), colour=(90, 90, 90), alpha=255, longest_side=None, group="animal"):
        width, height = sides
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[:, :, :3] = np.array(colour) * alpha // 255
        pixels[:, :, 3] = alpha
        kinds = frozenset({name, name.split(" ")[-1]})
        category = Category(name, group, f"{group}s", article_of(name), plural_of(name), kinds, colour_of(name))
        return CutOut(f"{name}.png", category, pixels, longest_side or max(sides))

    return make
