import pickle

import pytest
from detectron2.data import transforms as T
from mapper_cases import annotation, drawn_record, options, spelled, words_of_boxes

from glipv2_d2.data.dataset_mappers.captioning import CaptioningDatasetMapper, reference_captions

CAPTIONS = ["a cat left of a dog", "two animals", "pets on the right"]
CAT, DOG = (2, 5), (16, 19)


def mapper(augmentations=(), grounded=False, **more) -> CaptioningDatasetMapper:
    return CaptioningDatasetMapper(grounded=grounded, **options(augmentations, **more))


@pytest.fixture
def image(tmp_path) -> dict:
    """An image of 64 x 48."""
    return drawn_record(tmp_path)


@pytest.fixture
def plain(image) -> dict:
    return {**image, "captions": CAPTIONS}


@pytest.fixture
def grounded(image) -> dict:
    boxes = [annotation((4.0, 6.0, 24.0, 16.0), CAT), annotation((30.0, 8.0, 40.0, 40.0), DOG, score=0.6)]
    return {**image, "caption": CAPTIONS[0], "annotations": boxes}


def text_of(mapper, sample) -> str:
    return spelled(mapper, sample["prompts"][0].input_ids)


def test_a_plain_sample_reads_one_of_the_captions(plain):
    own = mapper()
    seen = set()
    for seed in range(30):
        sample = own({**plain, "sample_seed": seed})
        assert "instances" not in sample and sample["task"] == "captioning" and "dropped" not in sample
        assert sample["prompts"][0].phrases == () and sample["prompts"][0].mlm_labels is None
        seen.add(text_of(own, sample))
    assert seen == {f"[CLS] {caption} [SEP]" for caption in CAPTIONS}


def test_the_caption_is_a_function_of_the_seed(plain):
    own = mapper()
    texts = [[text_of(own, own({**plain, "sample_seed": seed})) for seed in range(8)] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_a_grounded_sample_has_the_boxes_of_its_words(grounded):
    own = mapper(grounded=True)
    sample = own({**grounded, "captions": ["never drawn"]})
    assert text_of(own, sample) == f"[CLS] {CAPTIONS[0]} [SEP]" and sample["task"] == "captioning"
    assert words_of_boxes(own, sample) == ["cat", "dog"]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [30, 8, 40, 40]]


def test_weak_boxes_and_crowds_are_no_targets(grounded):
    boxes = [*grounded["annotations"], annotation((1.0, 1.0, 9.0, 9.0), CAT, iscrowd=1)]
    sample = mapper(grounded=True, min_score=0.7)({**grounded, "annotations": boxes})
    assert sample["prompts"][0].phrases == ("cat",) and len(sample["instances"]) == 1


def test_grounded_data_train_plainly_where_nothing_is_grounded(grounded, plain):
    own = mapper()
    sample = own(grounded)
    assert "instances" not in sample and text_of(own, sample) == f"[CLS] {CAPTIONS[0]} [SEP]"
    assert "instances" not in mapper(grounded=True)(plain)


def test_a_caption_without_boxes_in_a_grounded_dataset_has_empty_instances(grounded):
    assert len(mapper(grounded=True)({**grounded, "annotations": []})["instances"]) == 0


def test_mirrored_captions_change_sides(plain, grounded):
    flip = [T.RandomFlip(1.0)]
    own = mapper(flip, flip_words=True)
    texts = {text_of(own, own({**plain, "sample_seed": seed})) for seed in range(30)}
    assert texts == {"[CLS] a cat right of a dog [SEP]", "[CLS] two animals [SEP]", "[CLS] pets on the left [SEP]"}
    own = mapper(flip, flip_words=True, grounded=True)
    sample = own({**grounded, "captions": CAPTIONS})
    assert text_of(own, sample) == "[CLS] a cat right of a dog [SEP]"
    assert words_of_boxes(own, sample) == ["cat", "dog"]
    own = mapper(flip, flip_words=True, grounded=True)
    assert "instances" not in own({**plain, "caption": "left"})


def test_the_dataset_dict_stays_as_it_is(plain, grounded):
    before = pickle.dumps((plain, grounded))
    for one in (plain, grounded):
        mapper([T.RandomFlip(1.0)], flip_words=True, grounded=True)(one)
        mapper(is_train=False)(one)
    assert pickle.dumps((plain, grounded)) == before


def test_a_caption_past_the_token_limit_is_cut_and_counted(grounded):
    sample = mapper(max_tokens=6, grounded=True)(grounded)
    assert sample["dropped"] == {"tokens": 2, "phrases": 1, "boxes": 1}


@pytest.mark.parametrize("is_grounded", [False, True])
def test_a_typed_special_token_is_text(grounded, is_grounded):
    own = mapper(grounded=is_grounded)
    ids = own({**grounded, "caption": "a [SEP] left of [CLS]"})["prompts"][0].input_ids.tolist()
    assert ids.count(ids[0]) == ids.count(ids[-1]) == 1


@pytest.mark.parametrize("is_grounded", [False, True])
def test_a_test_sample_is_an_image_alone(image, grounded, is_grounded):
    own = mapper(is_train=False, grounded=is_grounded)
    for one in (image, grounded):
        sample = own(one)
        assert set(sample) == {"file_name", "image_id", "height", "width", "image", "task"}
        assert sample["task"] == "captioning"


def test_the_references_of_an_image_are_all_its_captions():
    assert reference_captions({"captions": ("a", "b"), "caption": "c"}) == ["a", "b"]
    assert reference_captions({"caption": "c"}) == ["c"] and reference_captions({}) == []


def test_an_image_is_tested_once_wherever_it_lies():
    """Two images of a TSV file, whose name they share, and one in two files of a shard."""
    dicts = [{"file_name": "a.tsv", "tsv_offset": offset, "caption": text} for offset, text in ((0, "a"), (9, "b"))]
    dicts += [{**dicts[0], "caption": "another of the first"}, {"file_name": "a.jpg", "caption": "c"}]
    dicts += [{"file_name": f"a.tar/{row}.jpg", "image_bytes": b"jpg", "caption": str(row)} for row in (1, 2)]
    assert sorted(one["caption"] for one in CaptioningDatasetMapper.test_dicts(dicts)) == ["1", "a", "b", "c"]
