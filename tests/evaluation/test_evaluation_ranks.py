"""Two processes that evaluate half of a dataset each give exactly the numbers of one that evaluates all of it."""

import functools
import json
import tempfile
from pathlib import Path

import caption_cases
import pytest
import torch
from caption_cases import WORDS, caption_output, decode, scene
from detection_cases import HEIGHT, WIDTH, comparable, dataset_of, process, random_case
from detectron2.structures import BoxMode
from rank_runs import run_ranks

from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator
from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator
from glipv2_d2.evaluation.referring import ReferringEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator

SEEDS = range(12)
BOX_FILES = ("lvis_instances_results.json", "referring_results.json")


def referring_pairs(content):
    pairs = []
    for image in content["images"]:
        own = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        annotations = [
            {"bbox": item["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": item["segmentation"]}
            for item in own
            if not isinstance(item["segmentation"], dict) or isinstance(item["segmentation"]["counts"], str)
        ]
        pairs.append({"image_id": image["id"], "height": HEIGHT, "width": WIDTH, "annotations": annotations})
    return pairs


def evaluate_boxes(seed, folder, rows, **options):
    """Results of all evaluators, of the images in some rows of a random case."""
    content, detections, ids = random_case(seed, crowds=True)
    detections = {key: detections[key] for key in list(detections)[rows.start : rows.stop]}
    results = {}
    with dataset_of(content, folder / "annotations.json") as name:
        evaluators = {
            "lvis": LVISEvaluator(
                *(name, ("bbox", "segm")),
                output_folder=str(folder),
                detections_per_image=4,
                detections_per_category=3,
                **options,
            ),
            "coco": COCOInstanceEvaluator(name, ("bbox", "segm"), str(folder)),
            **{
                protocol: ReferringEvaluator(
                    name, referring_pairs(content), protocol, output_folder=str(folder), **options
                )
                for protocol in ("phrasecut", "refcoco")
            },
        }
        for kind, evaluator in evaluators.items():
            found = process(evaluator, detections, ids)
            results[kind] = {task: comparable(scores) for task, scores in found.items()}
    results["files"] = [
        sorted(json.loads((folder / file).read_text()), key=json.dumps) if (folder / file).exists() else None
        for file in BOX_FILES
    ]
    return results


NUM_IMAGES = 12
ANSWERS = ["yes", "no", "2"]
TEXT_FILES = ("vqa_submission.json", "vqa_predictions.json", "caption_predictions.json", "caption_scores.json")


def random_texts():
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


def evaluate_texts(folder, rows, **options):
    """Results and files of both evaluators, of some rows of the random case."""
    questions, scenes, answers, captions = random_texts()
    options = {"output_folder": str(folder), **options}
    asked = VQAEvaluator("asked", questions, ANSWERS, **options)
    shown = GroundedCaptioningEvaluator("shown", scenes, decode, implementation="python", **options)
    results = {
        "vqa": process_questions(asked, [answers[row] for row in rows]),
        "captions": caption_cases.process(shown, [captions[row] for row in rows]),
        "files": [json.loads((folder / name).read_text()) if (folder / name).exists() else None for name in TEXT_FILES],
    }
    return json.loads(json.dumps(results))


# For each case the function that evaluates it, the samples of all, and those of each rank. Of boxes the ranks have half
# of the images each, but for seeds whose second or first rank has none; number 4 of the texts is in both, as where a
# sampler repeats one.
CASES = {
    f"boxes {seed}": (functools.partial(evaluate_boxes, seed), range(4), (range(middle), range(middle, 4)))
    for seed in SEEDS
    for middle in [{0: 4, 1: 0}.get(seed % 6, 2)]
}
for own_rows in ((range(5), range(4, 12)), (range(0), range(12)), (range(12), range(0))):
    CASES[f"texts {own_rows}"] = (evaluate_texts, range(NUM_IMAGES), own_rows)


def evaluate_part(rank):
    """What one of two processes finds, case by case."""
    found = {}
    for name, (evaluate, _, rows) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = json.loads(json.dumps(evaluate(Path(folder), rows[rank])))
    return found


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(evaluate_part)


@pytest.mark.parametrize("name", CASES)
def test_first_of_two_processes_finds_what_one_process_finds_and_the_other_nothing(ranks, tmp_path, name):
    evaluate, rows, _ = CASES[name]
    expected = evaluate(tmp_path, rows)
    assert ranks[0][name] == expected
    assert ranks[1][name] == {key: [None] * len(value) if key == "files" else {} for key, value in expected.items()}


def test_the_cases_tell_right_from_wrong(tmp_path):
    texts = evaluate_texts(tmp_path, range(NUM_IMAGES))
    assert 0 < texts["vqa"]["vqa"]["accuracy"] < 100 and None not in texts["files"]
    assert 0 < texts["captions"]["grounding"]["R@1"] < texts["captions"]["grounding"]["R@5"]
    assert set(evaluate_boxes(0, tmp_path, range(4))["lvis"]) == {"bbox", "segm", "bbox_fixed", "segm_fixed"}


@pytest.mark.parametrize("name", ["boxes 2", "texts (range(0, 5), range(4, 12))"])
def test_a_process_can_evaluate_what_it_saw_alone(tmp_path, name):
    evaluate, rows, _ = CASES[name]
    assert evaluate(tmp_path, rows, distributed=False) == evaluate(tmp_path, rows)
