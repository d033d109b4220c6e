import json
import re

import pytest
import torch
from conftest import load_config
from detection_cases import dataset_of, make_annotation, make_content, process
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from glipv2_d2 import add_glipv2_config, register_coco_grounding, register_lvis, register_odvg
from glipv2_d2.data.datasets.coco import truth_of_images
from glipv2_d2.data.loading import LoadedDataset, load_test_dataset, load_training_dicts
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.build import check_test_data
from glipv2_d2.evaluation.captioning import CaptioningEvaluator
from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator

BOX = [10, 10, 40, 40]


def masked_cfg(mask_on, *options):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(["MODEL.MASK_ON", mask_on, *options])
    return cfg


@pytest.mark.parametrize(
    ("source", "precision"), [({"own_source": "/photos"}, 1 / 151), ({}, 0.0)], ids=["own", "public"]
)
def test_more_detections_than_cocos_100_count_on_own_sets_alone(dataset, tmp_path, source, precision):
    """One of two classes is found, behind 150 wrong detections of its image."""
    MetadataCatalog.get(dataset).set(**source)
    cfg = masked_cfg(False, "TEST.DETECTIONS_PER_IMAGE", 302, "OUTPUT_DIR", str(tmp_path))
    evaluator = build_evaluator(cfg, load_test_dataset(cfg, dataset))
    evaluator.reset()
    found = Instances(
        (100, 100), pred_classes=torch.zeros(151, dtype=torch.int64), scores=torch.linspace(0.9, 0.1, 151)
    )
    found.pred_boxes = Boxes(torch.tensor([[60.0, 60.0, 90.0, 90.0]] * 150 + [[10.0, 10.0, 50.0, 50.0]]))
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100 * precision / 2)


@pytest.fixture
def dataset(tmp_path):
    """Two images, one box of category 5 and one of category 9."""
    json_file = tmp_path / "annotations.json"
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 100, "width": 100} for k in (1, 2)],
        "categories": [{"id": 5, "name": "cup"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": c, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
            for k, c in ((1, 5), (2, 9))
        ],
    }
    json_file.write_text(json.dumps(content))
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    register_coco_grounding("evaluated", json_file, tmp_path)
    DatasetCatalog.get("evaluated")
    return "evaluated"


def evaluate(evaluator, predicted_classes):
    evaluator.reset()
    for image_id, predicted_class in zip((1, 2), predicted_classes):
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
        instances.scores = torch.tensor([0.9])
        instances.pred_classes = torch.tensor([predicted_class])
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP50"]


@pytest.mark.parametrize("predicted_classes, expected", [((0, 1), 100.0), ((1, 0), 0.0)])
def test_coco_dataset_is_scored_by_box_ap(dataset, tmp_path, predicted_classes, expected):
    evaluator = build_evaluator(masked_cfg(False), LoadedDataset(dataset, []), str(tmp_path / "out"))
    assert evaluate(evaluator, predicted_classes) == pytest.approx(expected)
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_predictions_go_to_a_folder_per_dataset(dataset, tmp_path):
    cfg = masked_cfg(False)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluate(build_evaluator(cfg, LoadedDataset(dataset, [])), (0, 1))
    assert (tmp_path / "inference" / "evaluated" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize("with_boxes", [False, True])
@pytest.mark.parametrize("evaluator_type", ["captioning", "grounded_captioning"])
def test_boxes_of_captions_are_scored_where_data_and_model_have_them(evaluator_type, with_boxes):
    name = f"{evaluator_type}_{with_boxes}"
    MetadataCatalog.get(name).set(task="captioning", evaluator_type=evaluator_type)
    cfg = load_config("models/glipv2_micro.yaml")
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = with_boxes
    evaluator = build_evaluator(cfg, LoadedDataset(name, [{"image_id": 1, "caption": "a dog"}]), "")
    is_grounded = with_boxes and evaluator_type == "grounded_captioning"
    assert type(evaluator) is (GroundedCaptioningEvaluator if is_grounded else CaptioningEvaluator)


def test_unknown_evaluator_type_names_the_dataset(dataset):
    metadata = MetadataCatalog.get(dataset)
    del metadata.evaluator_type
    metadata.evaluator_type = "sem_seg"
    with pytest.raises(ValueError, match="'evaluated'.*'sem_seg'"):
        build_evaluator(masked_cfg(False), LoadedDataset(dataset, []))


def test_data_that_are_not_there_are_found_before_the_first_image(dataset, tmp_path):
    cfg = masked_cfg(False)
    cfg.DATASETS.TEST = (dataset,)
    check_test_data(cfg)
    cfg.DATASETS.TEST = (dataset, "odinw_nowhere_test")
    with pytest.raises(ValueError, match="'odinw_nowhere_test' is not registered"):
        check_test_data(cfg)
    MetadataCatalog.get(dataset).image_ids_file = str(tmp_path / "ids.txt")
    cfg.DATASETS.TEST = (dataset,)
    with pytest.raises(FileNotFoundError, match="'evaluated': image_ids_file .*ids.txt"):
        check_test_data(cfg)


def test_detection_data_without_an_evaluator_type_are_scored_as_coco(dataset, tmp_path):
    del MetadataCatalog.get(dataset).evaluator_type
    evaluator = build_evaluator(masked_cfg(False), LoadedDataset(dataset, []), str(tmp_path / "out"))
    assert evaluate(evaluator, (0, 1)) == pytest.approx(100.0)


def test_detection_data_of_other_formats_are_scored_as_coco(tmp_path):
    lines = []
    for number, label in ((1, 4), (2, 7)):
        (tmp_path / f"{number}.png").touch()
        instances = [{"bbox": [10, 10, 50, 50], "label": label}]
        content = {"filename": f"{number}.png", "height": 100, "width": 100, "detection": {"instances": instances}}
        lines.append(json.dumps(content))
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    (tmp_path / "names.json").write_text(json.dumps({"4": "cup", "7": "dog"}))
    register_odvg("lines", tmp_path / "boxes.jsonl", tmp_path, names_file=tmp_path / "names.json")
    evaluator = build_evaluator(masked_cfg(False), load_test_dataset(masked_cfg(False), "lines"), str(tmp_path / "out"))
    assert evaluate(evaluator, (0, 1)) == pytest.approx(100.0)


def registered_dicts(tmp_path, name, image_ids):
    """Images of a reader outside of the package, with one box each of the categories 0, 1, 0 ..."""
    dicts = []
    for number, image_id in enumerate(image_ids):
        (tmp_path / f"{number}.png").touch()
        box = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": number % 2}
        image = {"file_name": str(tmp_path / f"{number}.png"), "height": 104, "width": 120, "annotations": [box]}
        dicts.append(image if image_id is None else {**image, "image_id": image_id})
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["cup", "dog"])
    return name


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_ids_of_images_may_be_strings(tmp_path, engine):
    """By hand: the cup is found, and one of two dogs behind a wrong box: precision 1/2 at 51 of 101 recalls."""
    cfg = masked_cfg(False, "TEST.EVALUATION_ENGINE", engine)
    loaded = load_test_dataset(cfg, registered_dicts(tmp_path, f"strings_{engine}", ["b/7", "10", "9", "a"]))
    kept = (loaded.dicts[0], loaded.dicts[1], loaded.dicts[3])
    loaded = loaded._replace(dicts=list(kept), truth=truth_of_images(loaded.truth, {one["image_id"] for one in kept}))
    evaluator = build_evaluator(cfg, loaded, str(tmp_path / "out"))
    found = {"b/7": [(0, 0.5, BOX)], "10": [], "a": [(1, 0.5, BOX), (1, 0.9, [0, 0, 9, 9])]}
    results = process(evaluator, found, category_ids=(0, 1), with_masks=False)["bbox"]
    assert (results["AP-cup"], results["AP-dog"]) == pytest.approx((100.0, 100 * 51 / 101 / 2))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [one["image_id"] for one in written] == ["b/7", "a", "a"]
    assert process(evaluator, {"10": []}, category_ids=(0, 1), with_masks=False)["bbox"]["AP"] == 0.0


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        ((1, 1), "1.png: image_id: expected an id that no other image has, found 1"),
        ((1, None), "1.png: image_id: expected an integer in every dict, or a string in every dict, found None"),
        ((None, 1), "0.png: image_id: expected an integer in every dict, or a string in every dict, found None"),
        ((1, "2"), "1.png: image_id: expected an integer in every dict, or a string in every dict, found '2'"),
    ],
)
def test_ids_that_results_cannot_be_judged_by_are_found_before_the_first_image(tmp_path, image_ids, message):
    name = registered_dicts(tmp_path, f"ids_{image_ids}", image_ids)
    with pytest.raises(InputError, match=re.escape(message)):
        load_test_dataset(masked_cfg(False), name)
    assert len(load_training_dicts(name, filter_empty=True)) == 2


def test_of_several_datasets_one_without_data_is_a_warning(dataset, tmp_path, caplog):
    register_coco_grounding("not_there", tmp_path / "missing.json", tmp_path)
    cfg = masked_cfg(False)
    cfg.DATASETS.TEST = ("not_there", dataset)
    check_test_data(cfg)
    assert "'not_there': json_file" in caplog.text
    cfg.DATASETS.TEST = ("not_there", "not_there")
    with pytest.raises(FileNotFoundError, match="'not_there': json_file"):
        check_test_data(cfg)


@pytest.mark.parametrize(("mask_on", "tasks"), [(True, ["bbox", "segm"]), (False, ["bbox"])])
def test_masks_of_coco_are_scored_if_the_model_has_them(tmp_path, mask_on, tasks):
    content = make_content([make_annotation(1, 1, BOX, iscrowd=0)])
    with dataset_of(content, tmp_path / "annotations.json") as name:
        MetadataCatalog.get(name).evaluator_type = "coco"
        evaluator = build_evaluator(masked_cfg(mask_on), LoadedDataset(name, []), str(tmp_path))
        results = process(evaluator, {1: [(1, 0.9, BOX)]}, with_masks=mask_on)
    assert list(results) == tasks and all(results[task]["AP"] == pytest.approx(100.0) for task in tasks)


@pytest.mark.parametrize(
    ("mask_on", "protocols", "expected"),
    [
        (True, ("standard", "fixed"), ["bbox", "segm", "bbox_fixed", "segm_fixed"]),
        (False, ("fixed",), ["bbox_fixed"]),
    ],
)
def test_lvis_is_scored_by_the_protocols_of_the_config(tmp_path, mask_on, protocols, expected):
    with dataset_of(make_content([make_annotation(1, 1, BOX)]), tmp_path / "annotations.json") as name:
        MetadataCatalog.get(name).evaluator_type = "lvis"
        cfg = masked_cfg(mask_on, "TEST.LVIS_PROTOCOLS", protocols)
        results = process(
            build_evaluator(cfg, LoadedDataset(name, []), str(tmp_path)), {1: [(1, 0.9, BOX)]}, with_masks=mask_on
        )
    assert list(results) == expected and all(results[task]["AP"] == pytest.approx(100.0) for task in expected)
    assert (tmp_path / "lvis_instances_results.json").is_file()


@pytest.mark.parametrize(("boxes", "side"), [("official", 39), ("exact", 40)])
def test_boxes_of_lvis_are_written_as_the_config_says(tmp_path, boxes, side):
    with dataset_of(make_content([make_annotation(1, 1, [10, 10, 40, 40])]), tmp_path / "annotations.json") as name:
        MetadataCatalog.get(name).evaluator_type = "lvis"
        cfg = masked_cfg(False, "TEST.LVIS_BOXES", boxes)
        evaluator = build_evaluator(cfg, LoadedDataset(name, []), str(tmp_path))
        process(evaluator, {1: [(1, 0.9, [10, 10, 40, 40])]}, with_masks=False)
    (written,) = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert written["bbox"] == [10, 10, side, side]


@pytest.fixture(params=["phrasecut", "refcoco"])
def phrases(request, tmp_path):
    """One phrase for a box, by its evaluator_type."""
    annotation = {
        **{"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0, "tokens_positive": [[0, 3]]},
        "segmentation": make_annotation(1, 1, BOX)["segmentation"],
    }
    (tmp_path / "1.jpg").touch()
    image = {"file_name": str(tmp_path / "1.jpg"), "height": 104, "width": 120, "image_id": 1, "caption": "cup"}
    DatasetCatalog.register(request.param, lambda: [{**image, "annotations": [annotation]}])
    MetadataCatalog.get(request.param).set(evaluator_type=request.param, task="grounding")
    return request.param


def test_phrases_are_scored_against_the_masks_of_their_dataset(phrases, tmp_path):
    cfg = masked_cfg(True, "MODEL.GLIPV2.TEST.REFERRING_THRESH", 0.95)
    # The second one is far off, but only the first is sure.
    detections = {1: [(1, 0.96, BOX), (1, 0.94, [60, 60, 30, 30])]}
    scores = process(build_evaluator(cfg, load_test_dataset(cfg, phrases), str(tmp_path)), detections)["referring"]
    assert scores["mIoU"] == pytest.approx(100.0)
    assert ("Pr@0.9" in scores) == (phrases == "phrasecut") and ("acc@0.5" in scores) == (phrases == "refcoco")
    assert (tmp_path / "referring_results.json").is_file()


def test_phrases_of_a_model_without_masks(phrases, tmp_path):
    if phrases == "phrasecut":
        with pytest.raises(ValueError, match="'phrasecut'.*expected MODEL.MASK_ON"):
            build_evaluator(masked_cfg(False), load_test_dataset(masked_cfg(False), phrases), str(tmp_path))
    else:
        results = process(
            build_evaluator(masked_cfg(False), load_test_dataset(masked_cfg(False), phrases), str(tmp_path)),
            {1: [(1, 0.9, BOX)]},
            with_masks=False,
        )
        assert results == {"referring": {"acc@0.5": 100.0}}


@pytest.mark.parametrize("evaluator_type", ["coco", "lvis"])
def test_a_file_without_annotations_gives_a_results_file(tmp_path, evaluator_type):
    """A test server reads the file; ids of more than 53 bits and a byte order mark are as good as others."""
    image_ids = [1700212345678901234, 1700212345678901235]
    content = {
        "images": [{"id": one, "file_name": f"{one}.png", "height": 100, "width": 100} for one in image_ids],
        "categories": [{"id": 5, "name": "cup"}, {"id": 9, "name": "dog"}],
    }
    json_file = tmp_path / "image_info.json"
    json_file.write_text(json.dumps(content), encoding="utf-8-sig")
    for one in image_ids:
        (tmp_path / f"{one}.png").touch()
    name = f"{tmp_path.name}_{evaluator_type}"
    {"coco": register_coco_grounding, "lvis": register_lvis}[evaluator_type](name, json_file, tmp_path)
    cfg = masked_cfg(False)
    loaded = load_test_dataset(cfg, name)
    assert [record["image_id"] for record in loaded.dicts] == image_ids
    evaluator = build_evaluator(cfg, loaded, str(tmp_path / "out"))
    evaluator.reset()
    for image_id in image_ids:
        instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]])))
        instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([1])
        evaluator.process([{"image_id": image_id, "height": 100, "width": 100}], [{"instances": instances}])
    assert not evaluator.evaluate()
    found = json.loads((tmp_path / "out" / f"{evaluator_type}_instances_results.json").read_text())
    assert [(one["image_id"], one["category_id"]) for one in found] == [(one, 9) for one in image_ids]
