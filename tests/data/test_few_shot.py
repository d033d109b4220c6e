"""A few images of a dataset: which are taken, and what is said where there are not enough."""

import json
import random
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.datasets.few_shot import FewShot, few_shot_dicts
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_training_dicts
from glipv2_d2.data.stream.state import NotedConfig
from glipv2_d2.data.stream.training_sets import load_training_sets

NAMES = ("red dog", "cat", "fish")
SIZE = (64, 48)
BOX = [4, 6, 20, 10]


def image(image_id, *categories, crowds=()):
    boxes = [{"category_id": category, "iscrowd": 0} for category in categories]
    return {"image_id": image_id, "annotations": boxes + [{"category_id": one, "iscrowd": 1} for one in crowds]}


def taken_ids(images, shots, seed=0, **options):
    return [one["image_id"] for one in few_shot_dicts("drawn", images, FewShot(shots, seed, **options), NAMES)]


def test_an_image_is_taken_while_one_of_its_categories_is_below_the_quota():
    images = [image(1, 0), image(2, 0), image(3, 0, 1), image(4, 1), image(5, 2), image(6, 1, 2)]
    # One shot: 1 for the dog; 2 adds nothing; 3 brings the cat, and counts a second dog; 4 adds nothing; 5 the fish.
    assert taken_ids(images, 1) == [1, 3, 5]
    # Two shots: 3 counts a third dog and the first cat; 4 the second cat; 5 and 6 the fish.
    assert taken_ids(images, 2) == [1, 2, 3, 4, 5, 6]
    assert taken_ids([*images[:4], image(5, 2), image(6, 2), image(7, 0, 1, 2)], 2) == [1, 2, 3, 4, 5, 6]


def test_many_boxes_of_a_category_in_an_image_count_once():
    images = [image(1, 0, 0, 0), image(2, 0), image(3, 1), image(4, 1), image(5, 2), image(6, 2)]
    assert taken_ids(images, 2) == [1, 2, 3, 4, 5, 6]


def test_crowd_regions_and_images_without_boxes_are_no_shots():
    images = [image(1), image(2, crowds=(0,)), image(3, 0, 1, 2), image(4, 0, 1, 2)]
    assert taken_ids(images, 1) == [3]


def test_seed_zero_goes_by_ascending_ids_and_keeps_the_order_of_the_data():
    images = [image(9, 0, 1, 2), image(4, 0), image(2, 1, 2), image(7, 0, 1, 2)]
    assert taken_ids(images, 1) == [4, 2]


def test_other_seeds_look_at_shuffled_images():
    images = [image(number, number % 3) for number in range(60)]
    chosen = [taken_ids(images, 2, seed) for seed in (3, 30, 300)]
    assert all(len(one) == 6 for one in chosen) and len({tuple(one) for one in chosen}) == 3
    assert chosen[0] == taken_ids(images[::-1], 2, 3)[::-1] == sorted(chosen[0])


@st.composite
def worlds(draw):
    """Images of up to three categories each, all of which are somewhere."""
    images = draw(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=12))
    return [image(number, *categories) for number, categories in enumerate([{0, 1, 2}, *images])]


@given(images=worlds(), shots=st.integers(1, 5), seed=st.integers(0, 5))
def test_every_category_has_its_shots_and_no_image_is_superfluous_when_it_is_taken(images, shots, seed):
    taken = set(taken_ids(images, shots, seed, allow_fewer=True))
    order = list(range(len(images)))
    if seed:
        random.Random(seed).shuffle(order)
    # Slowly: for each image count what has been taken before it.
    for place, number in enumerate(order):
        before = [images[one]["annotations"] for one in order[:place] if one in taken]
        counts = [sum(any(box["category_id"] == c for box in boxes) for boxes in before) for c in range(3)]
        needed = any(counts[box["category_id"]] < shots for box in images[number]["annotations"])
        assert (number in taken) == needed


def test_a_quota_larger_than_the_data_names_category_found_and_expected():
    images = [image(1, 0, 1), image(2, 0, 1), image(3, 0), image(4, crowds=(2,))]
    with pytest.raises(ValueError, match=r"'drawn' has 2 images of 'cat', expected at least 3; 1 more") as error:
        taken_ids(images, 3)
    assert "DATASETS.FEW_SHOT.SHOTS" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'drawn' has 0 images of 'fish', expected at least 1 "):
        taken_ids(images, 1)


def test_all_of_a_rare_category_are_taken_where_that_is_allowed(caplog):
    images = [image(1, 0), image(2, 0), image(3, 0), image(4, 1), image(5, 0)]
    assert taken_ids(images, 3, allow_fewer=True) == [1, 2, 3, 4]
    (message,) = caplog.messages
    assert message.endswith("fewer images than 3 shots: cat 1, fish 0")


@pytest.fixture
def six_images(make_dataset):
    """Two images of each category, the first without boxes; ids from 100."""
    return make_dataset([SIZE] * 7, [[], *([[row, *BOX]] for row in (0, 0, 1, 1, 2, 2))])


def load_ids(name, *few_shot, filter_empty=False):
    return [item["image_id"] for item in load_training_dicts(name, filter_empty, few_shot=FewShot(*few_shot))]


def test_training_data_is_what_is_taken_of_it(six_images):
    assert load_ids(six_images) == [100, 101, 102, 103, 104, 105, 106]
    assert load_ids(six_images, 1, 0) == [101, 103, 105]
    with pytest.raises(ValueError, match="2 images of 'red dog', expected at least 3"):
        load_ids(six_images, 3, 0)
    assert load_ids(six_images, 3, 0, True) == [101, 102, 103, 104, 105, 106]


def write_prepared(name, file_names, shots=1, seed=3):
    folder = Path(MetadataCatalog.get(name).image_root)
    content = json.loads((folder / "boxes.json").read_text())
    content["images"] = [{"id": number, "file_name": one} for number, one in enumerate(file_names)]
    (folder / f"fewshot_train_shot{shots}_seed{seed}.json").write_text(json.dumps(content))


def test_a_prepared_split_says_which_images_are_taken(six_images):
    write_prepared(six_images, ["106.png", "100.png", "102.png"])
    assert load_ids(six_images, 1, 3) == [100, 102, 106]
    # It is that of one seed and number of shots.
    assert load_ids(six_images, 1, 0) == [101, 103, 105]
    assert load_ids(six_images, 2, 3) == [101, 102, 103, 104, 105, 106]


@pytest.mark.parametrize(("files", "found"), [(["102.png", "7.png"], "7.png"), ([], "no image")])
def test_a_prepared_split_of_other_images_is_named(six_images, files, found):
    write_prepared(six_images, files)
    with pytest.raises(
        AnnotationError, match=rf"fewshot_train_shot1_seed3.json: expected images of .*, found .*{found}"
    ):
        load_ids(six_images, 1, 3)


def test_config_takes_shots_of_every_training_dataset(data_cfg, six_images, make_dataset):
    other = make_dataset([SIZE] * 4, [[[row, *BOX]] for row in (0, 1, 2, 0)])
    data_cfg.merge_from_list(["DATASETS.TRAIN", (six_images, other), "DATASETS.FEW_SHOT.SHOTS", 1])
    data_cfg.merge_from_list(["DATASETS.FEW_SHOT.SEED", 0])
    assert [item["image_id"] for item in load_training_sets(NotedConfig(data_cfg)).dicts] == [
        101,
        103,
        105,
        100,
        101,
        102,
    ]
    state = build_train_loader(data_cfg).state
    assert (state.layout["DATASETS.FEW_SHOT.SHOTS"], state.layout["DATASETS.FEW_SHOT.SEED"]) == (1, 0)
    data_cfg.merge_from_list(["DATASETS.FEW_SHOT.SHOTS", 2])
    with pytest.raises(ValueError, match=f"{other}.* has 1 images of 'cat'"):
        load_training_sets(NotedConfig(data_cfg))
    data_cfg.merge_from_list(["DATASETS.FEW_SHOT.ALLOW_FEWER", True])
    assert len(load_training_sets(NotedConfig(data_cfg)).dicts) == 10


@pytest.mark.parametrize(("key", "value"), [("SHOTS", -1), ("SEED", -2)])
def test_negative_numbers_are_named(data_cfg, six_images, key, value):
    data_cfg.merge_from_list(["DATASETS.TRAIN", (six_images,), f"DATASETS.FEW_SHOT.{key}", value])
    with pytest.raises(ValueError, match=rf"DATASETS.FEW_SHOT.{key}: expected at least 0, found {value}"):
        load_training_sets(NotedConfig(data_cfg))


def test_other_kinds_of_data_have_no_shots(data_cfg, monkeypatch, six_images):
    monkeypatch.setattr("glipv2_d2.data.loading.mapper_of", lambda _: GroundingDatasetMapper)
    records = [{**item, "caption": "a", "annotations": []} for item in DatasetCatalog.get(six_images)]
    monkeypatch.setattr("glipv2_d2.data.loading.load_dataset", lambda *_: records)
    with pytest.raises(
        ValueError, match=rf"SHOTS: expected 0 or detection data, found 1 and '{six_images}', grounding data"
    ):
        load_ids(six_images, 1)
    monkeypatch.setattr("glipv2_d2.data.stream.training_sets.shard_urls_of", lambda _: ["a.tar"])
    data_cfg.merge_from_list(["DATASETS.TRAIN", (six_images,), "DATASETS.FEW_SHOT.SHOTS", 1])
    with pytest.raises(ValueError, match="SHOTS: expected 0 or files, found 1 and .* a stream"):
        load_training_sets(NotedConfig(data_cfg))
