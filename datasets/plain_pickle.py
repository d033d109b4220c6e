"""Reads pickle files that hold nothing but lists, tuples, dicts, strings and numbers, and runs nothing of them.

A pickle is a program for a small stack machine, and pickle's own reader lets it import and call anything. This one
knows only those instructions that make plain values; any other is an error that names it. It reads all protocols, and
the strings of Python 2.

Source: the instructions as ``pickletools`` of the standard library describes them.
"""

import io
import pickletools
from pathlib import Path
from typing import Any

_MARK = object()
_KEY_TYPES = (str, int, float, bool, type(None))
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle file holds.

    Bytes of Python 2 strings that are not UTF-8 become replacement characters.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no pickle, is cut off, or holds more than plain values.
    """
    machine = _Machine(path.read_bytes())
    try:
        while machine.step():
            continue
        (value,) = machine.take(1)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        # An empty stack or a value of another type is what a damaged file leads to.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: byte {machine.begin}: {reason}; expected a pickle of plain values") from error
    return value


class _Machine:
    """The stack machine; ``begin`` is the place of the instruction that it is at."""

    def __init__(self, content: bytes):
        self._file = io.BytesIO(content)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.begin = 0

    def step(self) -> bool:
        """Read an instruction and do what it says; returns False at the one that ends the file."""
        self.begin = self._file.tell()
        opcode = pickletools.code2op.get(self._file.read(1).decode("latin-1"))
        if opcode is None:
            raise ValueError("there is no instruction")
        if opcode.name == "STRING":  # pickletools' reader takes ASCII alone.
            self._stack.append(_quoted_text(self._file.readline().strip()))
        else:
            self._do(opcode.name, opcode.arg.reader(self._file) if opcode.arg else None)
        return opcode.name != "STOP"

    def take(self, count: int) -> list[Any]:
        """Take the last values from the stack."""
        values = self._stack[len(self._stack) - count :]
        if count > len(self._stack) or _MARK in values:
            raise ValueError("a value is missing")
        del self._stack[len(self._stack) - count :]
        return values

    def _do(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                return
            case "MARK":
                self._stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self._stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                self._stack.append(argument)
            case "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                self._stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":
                self._stack.append(argument.encode("latin-1").decode("utf-8", "replace"))
            case "EMPTY_LIST" | "LIST":
                self._stack.append([] if name == "EMPTY_LIST" else self._since_mark())
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(tuple(self.take(_TUPLE_SIZES[name])))
            case "TUPLE":
                self._stack.append(tuple(self._since_mark()))
            case "EMPTY_DICT" | "DICT":
                pairs = [] if name == "EMPTY_DICT" else self._since_mark()
                self._stack.append({})
                self._fill(pairs)
            case "APPEND" | "APPENDS":
                values = self.take(1) if name == "APPEND" else self._since_mark()
                self._last(list).extend(values)
            case "SETITEM" | "SETITEMS":
                self._fill(self.take(2) if name == "SETITEM" else self._since_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case _:
                raise ValueError(f"found the instruction {name} {argument!r:.60}")

    def _since_mark(self) -> list[Any]:
        """Take from the stack the last mark and all values after it."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _last(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is missing")
        return self._stack[-1]

    def _fill(self, pairs: list[Any]) -> None:
        """Put keys and values, which come in turn, into the dict that is the last value."""
        # To hash a tuple of tuples can take for ever: a small file may hold one that is nested 100 times.
        if not all(type(key) in _KEY_TYPES for key in pairs[::2]):
            raise ValueError("a key that is no string and no number")
        self._last(dict).update(zip(pairs[::2], pairs[1::2], strict=True))


def _quoted_text(line: bytes) -> str:
    """The text of a string of Python 2 as protocol 0 has it: in quotes, with escapes."""
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError("a string without quotes")
    return line[1:-1].decode("unicode_escape").encode("latin-1").decode("utf-8", "replace")
