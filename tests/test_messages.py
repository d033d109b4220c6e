"""Every message that the package could raise before its second edition has a successor that says at least as much.

``assets/messages.txt`` lists them: "= MESSAGE" is raised word for word to this day; "- MESSAGE" has the successors that
follow, "+ MESSAGE" raised, or "* TEXT" somewhere in the package, such as a kind of fault in the report on a file.
``python tests/test_messages.py`` writes the successors anew where messages were reworded, by likeness: read its diff.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "assets" / "messages.txt"
# Some code of the package of before has moved to the tool that is its only user.
FOLDERS = ("glipv2_d2", "tools")


def template(node: ast.AST | None) -> str | None:
    """Return the text of a string expression, with {} for each value in it; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = template(node.left), template(node.right)
        return None if None in sides else f"{sides[0]}{sides[1]}"
    return None


def texts_of(root: Path) -> Iterator[str]:
    """Yield all strings in the code of a package."""
    for file in sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (text := template(node)) is not None:
                yield " ".join(text.split())


def raised_messages(root: Path) -> list[str]:
    """Return the messages of all ``raise`` statements of a package, each once, in the order of the files."""
    found: dict[str, None] = {}
    for file in sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    for text in _message_texts(node.exc.args[0], function):
                        found[" ".join(text.split())] = None
    # Without words of its own a message is another one's.
    return [text for text in found if any(letter.isalpha() for letter in text.replace("{}", ""))]


def _message_texts(argument: ast.expr, function: ast.AST) -> Iterator[str]:
    if (text := template(argument)) is not None:
        yield text
    elif isinstance(argument, ast.Name):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and any(ast.dump(t) == ast.dump(_stored(argument)) for t in node.targets):
                values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
                yield from (text for value in values if (text := template(value)) is not None)


def _stored(name: ast.Name) -> ast.Name:
    return ast.Name(name.id, ast.Store())


def read_list() -> dict[str, list[str]]:
    """Read the list: each message of before with its successors, those of the report marked by "* "."""
    successors: dict[str, list[str]] = {}
    current: list[str] = []
    for line in LIST.read_text(encoding="utf-8").splitlines():
        mark, text = line[:2], line[2:]
        if mark in ("= ", "- "):
            current = successors[text] = [text] if mark == "= " else []
        else:
            current.append(line if mark == "* " else text)
    return successors


def test_every_message_of_before_has_a_successor():
    raised, texts = set(raised_messages(ROOT)), set(texts_of(ROOT))
    missing = [
        (before, after)
        for before, successors in read_list().items()
        for after in successors or ["none"]
        if not (after[2:] in texts if after.startswith("* ") else after in raised)
    ]
    assert not missing, f"{len(missing)} messages are gone, such as {missing[0]}"


def test_messages_are_found_in_code(tmp_path):
    (tmp_path / "glipv2_d2").mkdir()
    (tmp_path / "glipv2_d2" / "a.py").write_text(
        'def f(x):\n    raise E(f"KEY: expected {x!r}, " "found " + f"{x:.3f}") from x\n'
        'def g(x):\n    text = "b" if x else f"c {x}"\n    raise E(text)\n'
        "raise E\n"
    )
    assert raised_messages(tmp_path) == ["KEY: expected {}, found {}", "b", "c {}"]
    assert {"KEY: expected {}, found {}", "b", "c {}", "found "} >= set(raised_messages(tmp_path))


def most_alike(message: str, others: list[str]) -> str:
    """Return the one that shares most of its words with a message; words that are rare among the others count more."""
    words = {other: set(re.findall(r"\w+", other)) for other in others}
    counts = Counter(word for own in words.values() for word in own)
    wanted = set(re.findall(r"\w+", message))

    def weight(some: set[str]) -> float:
        return sum(1 / counts.get(word, 1) for word in some)

    return max(others, key=lambda other: weight(wanted & words[other]) / (weight(wanted | words[other]) or 1))


def update(before: list[str]) -> None:
    """Write the list for these messages, with the successors that it has, or those most like them."""
    known = read_list() if LIST.exists() else {}
    raised, texts = raised_messages(ROOT), set(texts_of(ROOT))
    lines = []
    for message in before:
        if message in raised:
            lines.append(f"= {message}")
            continue
        lines.append(f"- {message}")
        for after in known.get(message) or [message]:
            if after.startswith("* ") and after[2:] in texts:
                lines.append(after)
            elif after in raised:
                lines.append(f"+ {after}")
            else:
                lines.append(f"+ {most_alike(after.removeprefix('* '), raised)}")
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    update(raised_messages(Path(sys.argv[1])) if len(sys.argv) > 1 else list(read_list()))
