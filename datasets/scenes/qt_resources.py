"""Reads Qt resource files (``.rcc``), in which the GCompris package keeps its photographs."""

import struct
import zlib
from pathlib import Path

_DIRECTORY = 0x02
_ZLIB = 0x01
_ZSTD = 0x04


class QtResourceFile:
    """The files inside one ``.rcc`` file, by their path.

    Args:
        path: The ``.rcc`` file. It is read whole, and never executed or written.

    Raises:
        ValueError: The file does not start with the ``qres`` mark, or an offset points outside it.

    Source: the format as Qt's ``rcc`` writes it, versions 1 to 3. All numbers are big-endian. Header: mark,
    version, offsets of tree, data and names. Tree node: name offset (u32), flags (u16), then for a directory
    the number of children and the index of the first one (u32 each), for a file its locale (4 bytes) and data
    offset (u32); from version 2 on 8 bytes of modification time follow. Data: u32 length and bytes, of which
    the first 4 hold the unpacked length when zlib is used. Name: u16 length, u32 hash, UTF-16.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._bytes = self.path.read_bytes()
        if self._bytes[:4] != b"qres":
            raise ValueError(f"{self.path}: expected b'qres' at its start, found {self._bytes[:4]!r}")
        self._files: dict[str, tuple[int, int]] = {}
        try:
            self._version, self._tree, self._data, self._names = struct.unpack_from(">4I", self._bytes, 4)
            self._walk()
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: expected a whole resource file, found a broken one ({error})") from error

    def names(self) -> list[str]:
        """Paths of all files inside, sorted, without a leading slash."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """The unpacked content of the file ``name``.

        Raises:
            KeyError: There is no such file.
            ValueError: It is cut short, does not unpack, or is packed with zstd, which needs a library.
        """
        if name not in self._files:
            raise KeyError(f"{self.path}: expected a file {name!r} inside, found none")
        flags, offset = self._files[name]
        start = self._data + offset
        length = int.from_bytes(self._bytes[start : start + 4], "big")
        content = self._bytes[start + 4 : start + 4 + length]
        if start + 4 > len(self._bytes) or len(content) != length:
            raise ValueError(f"{self.path}: {name}: expected {length} bytes, found {len(content)}")
        if flags & _ZSTD:
            raise ValueError(f"{self.path}: {name}: expected plain or zlib content, found zstd")
        if not flags & _ZLIB:
            return content
        try:
            return zlib.decompress(content[4:])
        except zlib.error as error:
            raise ValueError(f"{self.path}: {name}: expected zlib content, found other ({error})") from error

    def _walk(self) -> None:
        """Follow the tree from its root, each node once: a broken file may name a node twice, or its own parent."""
        node_size = 14 if self._version < 2 else 22
        pending, seen = [(0, "")], {0}
        while pending:
            node, parent = pending.pop()
            at = self._tree + node * node_size
            name_offset, flags = struct.unpack_from(">IH", self._bytes, at)
            path = "/".join(filter(None, (parent, self._name(name_offset)))) if node else ""
            if not flags & _DIRECTORY:
                (data_offset,) = struct.unpack_from(">I", self._bytes, at + 10)
                self._files[path] = (flags, data_offset)
                continue
            count, first = struct.unpack_from(">2I", self._bytes, at + 6)
            num_nodes = (len(self._bytes) - self._tree) // node_size
            if first + count > num_nodes:
                raise ValueError(f"{self.path}: expected at most {num_nodes} nodes, found node {first + count - 1}")
            for child in range(first, first + count):
                if child in seen:
                    raise ValueError(f"{self.path}: expected a tree, found node {child} twice")
                seen.add(child)
                pending.append((child, path))

    def _name(self, offset: int) -> str:
        at = self._names + offset
        (length,) = struct.unpack_from(">H", self._bytes, at)
        raw = self._bytes[at + 6 : at + 6 + 2 * length]
        if len(raw) != 2 * length:
            raise ValueError(f"{self.path}: expected a name of {length} letters, found one that is cut short")
        return raw.decode("utf-16-be")
