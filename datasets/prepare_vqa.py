"""Make the list of answers that training on visual questions needs besides the annotations, and VQAv2's dev split.

    python datasets/prepare_vqa.py                           # VQAv2, in $DETECTRON2_DATASETS/vqav2
    python datasets/prepare_vqa.py --annotations my.jsonl --output my_answers.json --min-occurrences 2

An answer is in the list if it is the most common one of at least nine questions, in the normal form in which answers
are compared. The most frequent comes first, and each has its number of questions, from which training starts. The
answers of VQAv2 come from train2014 and val2014, and its dev split has 2,000 images of val2014, drawn by a seed.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checked_files import check, write_json

from glipv2_d2.errors import one_line
from glipv2_d2.plurals import counted
from glipv2_d2.prompts.answers import normal_form

ANNOTATIONS = "v2_mscoco_{}2014_annotations.json"
ANSWERS = "answers.json"
DEV_IMAGES = "dev2k_images.json"
NUM_DEV_IMAGES = 2000


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; existing ones are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser.add_argument("folder", type=Path, nargs="?", default=root / "vqav2", help="of VQAv2; default: %(default)s")
    parser.add_argument("--annotations", type=Path, nargs="+", help="others, .json or .jsonl; no dev split is made")
    parser.add_argument("--output", type=Path, help=f"list of answers; default: {ANSWERS} in the folder")
    parser.add_argument("--min-occurrences", type=int, default=9, help="questions of an answer; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the dev split; default: %(default)s")
    options = parser.parse_args(arguments)
    if options.min_occurrences < 1:
        parser.error(f"--min-occurrences: expected at least 1, found {options.min_occurrences}")
    if options.annotations and not options.output:
        parser.error("--annotations needs --output")
    files = options.annotations or [options.folder / ANNOTATIONS.format(split) for split in ("train", "val")]
    try:
        contents = {str(file): read_json_lines(file) if file.suffix == ".jsonl" else read_json(file) for file in files}
        counts = count_answers(contents)
        num_blank = counts.pop("", 0)
        answers = frequent_answers(counts, options.min_occurrences)
        output = options.output or options.folder / ANSWERS
        write_json(output, {answer: counts[answer] for answer in answers})
        covered = sum(counts[answer] for answer in answers)
        total = f"{len(answers)} of {counted(len(counts), 'answer')}"
        print(f"{output}: {total}, of {covered} of {counted(counts.total(), 'question')}")
        if num_blank:
            print(f"left out: {counted(num_blank, 'question')} with a blank answer")
        if not options.annotations:
            image_ids = draw_images(contents[str(files[1])], str(files[1]), options.seed)
            write_json(options.folder / DEV_IMAGES, image_ids)
            print(f"{options.folder / DEV_IMAGES}: {counted(len(image_ids), 'image')}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def read_json(file: Path) -> dict:
    """Read a json file that holds an object.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected a json file, found another ({' '.join(str(error).split())})") from error
    check(isinstance(content, dict), str(file), content, "an object")
    return content


def read_json_lines(file: Path) -> list[tuple[int, Any]]:
    """Read json lines, with their numbers from 1; blank ones are passed over.

    Raises:
        OSError: It cannot be read.
        ValueError: A line is not json.
    """
    lines = []
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                lines.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}: line {number}: expected json, found none ({one_line(error)})") from error
    return lines


def count_answers(contents: dict[str, dict | list[tuple[int, Any]]]) -> Counter[str]:
    """Count for each answer, in its normal form, the questions whose most common answer it is.

    Args:
        contents: By the names of the files: VQA's ``annotations`` with ``multiple_choice_answer``; or questions that
            have an ``answer`` or ``answers``, of which the most common counts, the first of equals: ``questions`` of
            ``images``, or the lines of a file with their numbers.

    Returns:
        Counts; under "" those of the questions whose answer is blank.

    Raises:
        ValueError: A question has no answer, or there are no questions.
    """
    counts: Counter[str] = Counter()
    for source, content in contents.items():
        for where, answer in _answers(content, source):
            check(isinstance(answer, str), where, answer, "a string")
            counts[normal_form(answer)] += 1
    if not counts.keys() - {""}:
        raise ValueError(f"{', '.join(contents)}: expected questions with answers, found none")
    return counts


def frequent_answers(counts: Counter[str], min_occurrences: int) -> list[str]:
    """Return the answers of at least so many questions, the most frequent first, equally frequent ones by alphabet.

    Raises:
        ValueError: No answer is that frequent.
    """
    answers = sorted(counts, key=lambda answer: (-counts[answer], answer))
    kept = [answer for answer in answers if counts[answer] >= min_occurrences]
    if not kept:
        most = f"at most {counts[answers[0]]}, the questions of one answer"
        raise ValueError(f"--min-occurrences: expected {most}, found {min_occurrences}")
    return kept


def draw_images(content: dict, source: str, seed: int) -> list[int]:
    """Draw the images of the dev split from VQA's annotations, and return their ids in ascending order.

    Raises:
        ValueError: There are fewer images, or an annotation has no ``image_id``.
    """
    image_ids = set()
    for index, item in enumerate(content["annotations"]):
        image_id = item.get("image_id")
        check(type(image_id) is int, f"{source}: annotations[{index}].image_id", image_id, "an integer")
        image_ids.add(image_id)
    if len(image_ids) < NUM_DEV_IMAGES:
        raise ValueError(f"{source}: expected at least {NUM_DEV_IMAGES} images, found {len(image_ids)}")
    return sorted(random.Random(seed).sample(sorted(image_ids), NUM_DEV_IMAGES))


def _answers(content: dict | list[tuple[int, Any]], source: str) -> Iterator[tuple[str, Any]]:
    """Yield where each question stands, and its most common answer."""
    if isinstance(content, list):
        for number, question in content:
            yield _most_common(question, f"{source}: line {number}", ": ")
        return
    kind = "images" if "images" in content else "annotations"
    entries = content.get(kind)
    check(isinstance(entries, list), f"{source}: {kind}", entries, "a list")
    for index, entry in enumerate(entries):
        where = f"{source}: {kind}[{index}]"
        check(isinstance(entry, dict), where, entry, "an object")
        if kind == "annotations":
            yield f"{where}.multiple_choice_answer", entry.get("multiple_choice_answer")
            continue
        questions = entry.get("questions", [])
        check(isinstance(questions, list), f"{where}.questions", questions, "a list")
        for number, question in enumerate(questions):
            yield _most_common(question, f"{where}.questions[{number}]", ".")


def _most_common(question: Any, where: str, separator: str) -> tuple[str, Any]:
    """Return where the answer of a question stands, with ``separator`` before its field, and the answer."""
    check(isinstance(question, dict), where, question, "an object")
    if "answer" in question:
        return f"{where}{separator}answer", question["answer"]
    answers, where = question.get("answers"), f"{where}{separator}answers"
    check(isinstance(answers, list) and bool(answers), where, answers, "a list of answers")
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    for text in texts:
        check(isinstance(text, str), where, text, "a string")
    most, _ = Counter(map(normal_form, texts)).most_common(1)[0]
    return where, most


if __name__ == "__main__":
    main()
