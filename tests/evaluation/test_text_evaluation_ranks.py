"""Two processes that judge half of the answers and captions each give exactly the numbers of one that judges all.

The file is also the program of such a process: ``python test_text_evaluation_ranks.py RANK FOLDER``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    # pytest finds the shared helpers of the tests by its configuration.
    sys.path.insert(0, str(ROOT / "tests"))

from caption_cases import WORDS, caption_output, decode, process, scene  # noqa: E402

from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator  # noqa: E402
from glipv2_d2.evaluation.vqa import VQAEvaluator  # noqa: E402

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


def run_rank(rank, folder):
    """Be one of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, rows in ROWS.items():
        own = Path(folder) / f"{rank}-{name}"
        own.mkdir()
        found[name] = evaluate(own, rows[rank])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    # Both are done: neither closes a connection that the other reads. Threads of gloo that still wait when the
    # interpreter ends would abort it.
    distributed.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).resolve())]
    processes = [subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for running in processes:
            running.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


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


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])
