"""Turn the expressions of RefCOCO, RefCOCO+ and RefCOCOg, which come as pickles, into json.

    python datasets/prepare_refcoco.py                       # in $DETECTRON2_DATASETS/refcoco

Every ``refs(NAME).p`` in a folder below becomes ``refs_NAME.json`` beside it. Nothing in the pickles is run: a file
that holds more than lists, dicts, strings and numbers is refused.
"""

import argparse
import copyreg
import os
import pickle
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from checked_files import check, write_json

# What is kept of an object and of each of its sentences. "raw" is the sentence before it was cleaned.
_REF_FIELDS = {"ref_id": int, "ann_id": int, "image_id": int, "category_id": int, "split": str}
_SENTENCE_FIELDS = {"sent_id": int, "sent": str, "raw": str}


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings, numbers and other plain values; whatever would import or call is an error."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse to import."""
        raise pickle.UnpicklingError(f"{module}.{name}, which is not a plain value")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse to look up."""
        raise pickle.UnpicklingError(f"the name {pid!r:.60} of a value that lies elsewhere")


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle file holds, and run nothing of it.

    Strings of Python 2 are read as UTF-8; bytes that are not become replacement characters.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a pickle, is cut off, or holds more than plain values.
    """
    # A class that has a number, and was loaded by it before, is taken without a question.
    copyreg.clear_extension_cache()
    with path.open("rb") as file:
        try:
            return PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except OSError:
            raise
        except Exception as error:  # A damaged pickle can end in any of them.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{path}: expected a pickle of plain values, found {reason}; download the file again"
            ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert all files; existing json is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser.add_argument("folder", type=Path, nargs="?", default=root / "refcoco", help="default: %(default)s")
    folder = parser.parse_args(arguments).folder
    files = sorted(folder.glob("*/refs(*).p"))
    if not files:
        sys.exit(f"error: {folder}: expected */refs(NAME).p of refcoco, refcoco+ or refcocog, found none")
    for file in files:
        try:
            refs = convert_refs(read_plain_pickle(file), str(file))
            output = file.with_name(f"refs_{file.name[len('refs(') : -len(').p')]}.json")
            write_json(output, {"refs": refs})
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        counts = Counter()
        for ref in refs:
            counts[ref["split"]] += len(ref["sentences"])
        print(f"{output}: " + ", ".join(f"{split} {count} expressions" for split, count in sorted(counts.items())))


def convert_refs(refs: Any, source: str) -> list[dict]:
    """Return the objects with the fields that are needed.

    Args:
        refs: What the pickle held.
        source: Its name, for the message.

    Raises:
        ValueError: An object, or one of its sentences, lacks a field or has one of another type.
    """
    check(isinstance(refs, list), source, refs, "a list of objects")
    converted = []
    for index, ref in enumerate(refs):
        where = f"{source}: [{index}]"
        record = _fields(ref, _REF_FIELDS, where)
        sentences = ref.get("sentences")
        check(isinstance(sentences, list), f"{where}.sentences", sentences, "a list of sentences")
        record["sentences"] = [
            _fields(sentence, _SENTENCE_FIELDS, f"{where}.sentences[{number}]")
            for number, sentence in enumerate(sentences)
        ]
        converted.append(record)
    return converted


def _fields(entry: Any, fields: dict[str, type], where: str) -> dict[str, Any]:
    check(isinstance(entry, dict), where, entry, "a dict")
    for field, kind in fields.items():
        check(type(entry.get(field)) is kind, f"{where}.{field}", entry.get(field), f"a value of type {kind.__name__}")
    return {field: entry[field] for field in fields}


if __name__ == "__main__":
    main()
