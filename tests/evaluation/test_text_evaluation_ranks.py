"""Two processes that judge half of the answers and captions each give exactly the numbers of one that judges all."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from caption_cases import WORDS, caption_output, decode, process, scene
from rank_runs import run_ranks

from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator

NUM_IMAGES = 12
ANSWERS = ["yes", "no", "2"]
# Images of each rank; number 4 is in both, as where a sampler repeats one.
ROWS = {"halves": (range(0, 5), range(4, 12)), "idle": (range(0), range(12)), "other_idle": (range(12), range(0))}
FILES = ("vqa_submission.json", "vqa_predictions.json", "caption_predictions.json", "caption_scores.json")


def random_case():
    """Questions and scenes, and what a model says to them."""
    draw = torch.Generator().manual_seed(5)

    def pick(options):
        return options[int(torch.randint(len(options), (1,), generator=draw))]

    questions, scenes, answers, captions = [], [], [], []
    for number in range(NUM_IMAGES):
        people = [pick(["yes", "no", "two", "maybe"]) for _ in range(10)]
        questions.append({"question_id": 100 - number, "image_id": number, "question": "what?", "answers": people})
        answers.append((100 - number, {"answer_scores": torch.rand(3, generator=draw)}))
        box = (torch.rand(2, generator=draw) * 50).tolist()
        box = [*box, box[0] + 40, box[1] + 40]
        scenes.append(scene(number, "a dog and a red car", [("dog", box), ("red car", (0, 0, 30, 30))]))
        caption = " ".join([pick(WORDS[1:]) for _ in range(6)] + ["dog"])
        near = [value + pick([0.0, 5.0, 15.0]) for value in box]
        captions.append(
            (number, caption_output(caption, {"dog": [([0.0, 0.0, 9.0, 9.0], 0.3), (near, pick([0.2, 0.4]))]}))
        )
    return questions, scenes, answers, captions


def process_questions(evaluator, answers):
    evaluator.reset()
    for question_id, output in answers:
        evaluator.process([{"question_id": question_id}], [output])
    return evaluator.evaluate()


def evaluate(folder, rows, **options):
    """Results and files of both evaluators, of some rows of the random case."""
    questions, scenes, answers, captions = random_case()
    options = {"output_folder": str(folder), **options}
    asked = VQAEvaluator("asked", questions, ANSWERS, **options)
    shown = GroundedCaptioningEvaluator("shown", scenes, decode, implementation="python", **options)
    results = {
        "vqa": process_questions(asked, [answers[row] for row in rows]),
        "captions": process(shown, [captions[row] for row in rows]),
        "files": [json.loads((folder / name).read_text()) if (folder / name).exists() else None for name in FILES],
    }
    return json.loads(json.dumps(results))


def evaluate_part(rank):
    """What one of two processes finds, case by case."""
    found = {}
    for name, rows in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = evaluate(Path(folder), rows[rank])
    return found


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(evaluate_part)


@pytest.mark.parametrize("name", ROWS)
def test_first_of_two_processes_finds_what_one_process_finds(ranks, tmp_path, name):
    expected = evaluate(tmp_path, range(NUM_IMAGES))
    assert 0 < expected["vqa"]["vqa"]["accuracy"] < 100 and None not in expected["files"]
    assert 0 < expected["captions"]["grounding"]["R@1"] < expected["captions"]["grounding"]["R@5"]
    assert ranks[0][name] == expected


@pytest.mark.parametrize("name", ROWS)
def test_the_other_process_has_no_results(ranks, name):
    assert ranks[1][name] == {"vqa": {}, "captions": {}, "files": [None] * 4}


def test_a_process_can_judge_what_it_saw_alone(tmp_path):
    rows = range(NUM_IMAGES)
    assert evaluate(tmp_path, rows, distributed=False) == evaluate(tmp_path, rows)
