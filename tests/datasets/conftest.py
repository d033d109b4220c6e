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


# Words, kind by the number of its lexicographer file, and the first word of what it is a kind of.
NOUNS = (
    ("animal", 5, ""),
    ("tool", 6, ""),
    ("dog, domestic dog", 5, "animal"),
    ("poodle", 5, "dog"),
    ("puppy", 5, "dog"),
    ("bird", 5, "animal"),
    ("crow", 5, "bird"),
    ("owl", 5, "bird"),
    ("fox", 5, "animal"),
    ("mouse", 5, "animal"),
    ("dormouse", 5, "mouse"),
    ("bat, chiropteran", 5, "animal"),
    ("bat", 6, "tool"),
    ("hammer", 6, "tool"),
    ("saw", 6, "tool"),
    ("glass", 6, ""),
    ("scissors", 6, "tool"),
    ("house", 6, ""),
    ("eggplant, aubergine", 13, ""),
    ("cherry", 13, ""),
    ("hot dog", 13, ""),
    ("kettle", 6, ""),
    ("joy", 12, ""),
    ("paris", 15, "!house"),
)


@pytest.fixture
def make_wordnet(tmp_path) -> Callable:
    """Write a folder of WordNet's files that holds ``NOUNS``."""

    def make():
        folder = tmp_path / "wordnet"
        folder.mkdir(exist_ok=True)
        starts: dict[str, int] = {}
        index: dict[str, list[int]] = {}
        data = b"  1 a line of the licence  \n"
        for words, file_number, parent in NOUNS:
            names = [word.strip() for word in words.split(",")]
            symbol, target = ("@i", parent[1:]) if parent.startswith("!") else ("@", parent)
            pointers = f"001 {symbol} {starts[target]:08d} n 0000" if target else "000"
            for name in names:
                index.setdefault(name, []).append(len(data))
            starts.setdefault(names[0], len(data))
            written = " ".join(f"{name.replace(' ', '_')} 0" for name in names)
            line = f"{len(data):08d} {file_number:02d} n {len(names):02x} {written} {pointers} | a gloss  \n"
            data += line.encode()
        lines = []
        for name, numbers in sorted(index.items()):
            listed = " ".join(f"{one:08d}" for one in numbers)
            lines.append(f"{name.replace(' ', '_')} n {len(numbers)} 1 @ {len(numbers)} 0 {listed}  ")
        (folder / "data.noun").write_bytes(data)
        (folder / "index.noun").write_text("  1 a line of the licence  \n" + "\n".join(lines) + "\n")
        (folder / "noun.exc").write_text("mice mouse\n")
        return folder

    return make
