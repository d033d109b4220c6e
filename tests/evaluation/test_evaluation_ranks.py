"""Two processes that evaluate half of a dataset each give exactly the numbers of one that evaluates all of it."""

import json
import tempfile
from pathlib import Path

import pytest
from detection_cases import HEIGHT, WIDTH, comparable, dataset_of, process, random_case
from detectron2.structures import BoxMode
from rank_runs import run_ranks

from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator
from glipv2_d2.evaluation.lvis_evaluator import LVISEvaluator
from glipv2_d2.evaluation.referring import ReferringEvaluator

SEEDS = range(12)
FILES = ("lvis_instances_results.json", "referring_results.json")


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


def evaluate(seed, folder, rows, **options):
    """Results of all evaluators, of the images in some rows of a random case."""
    content, detections, ids = random_case(seed, crowds=True)
    detections = dict(list(detections.items())[rows])
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
        for file in FILES
    ]
    return results


def rows_of_rank(seed, rank):
    """Half of the images each, but for seeds whose second or first rank has none."""
    middle = {0: 4, 1: 0}.get(seed % 6, 2)
    return slice(0, middle) if rank == 0 else slice(middle, 4)


def evaluate_half(rank):
    """What one of two processes finds, case by case."""
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(evaluate(seed, Path(folder), rows_of_rank(seed, rank)))
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(evaluate_half)


@pytest.mark.parametrize("seed", SEEDS)
def test_first_of_two_processes_finds_what_one_process_finds(ranks, tmp_path, seed):
    expected = evaluate(seed, tmp_path, slice(0, 4))
    assert set(expected["lvis"]) == {"bbox", "segm", "bbox_fixed", "segm_fixed"}
    assert ranks[0][seed] == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_the_other_process_has_no_results(ranks, seed):
    nothing = dict.fromkeys(("lvis", "coco", "phrasecut", "refcoco"), {})
    assert ranks[1][seed] == {**nothing, "files": [None, None]}


def test_a_process_can_evaluate_what_it_saw_alone(tmp_path):
    assert evaluate(2, tmp_path, slice(0, 4), distributed=False) == evaluate(2, tmp_path, slice(0, 4))
