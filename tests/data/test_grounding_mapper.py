import pickle
from pathlib import Path

import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from mapper_cases import annotation, drawn_record, options, words_of_boxes

from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.dataset_mappers.pseudo_grounding import PseudoGroundingDatasetMapper
from glipv2_d2.prompts.builder import prompt_from_caption
from glipv2_d2.prompts.tokenizer import PromptTokenizer

#          0123456789012345678901234567890123456
CAPTION = "a red dog left of the cat, and a dog"
RED_DOG, CAT, LAST_DOG = (2, 9), (22, 25), (33, 36)
IGNORED = -100


def grounding_mapper(**more) -> GroundingDatasetMapper:
    return GroundingDatasetMapper(**options(**more))


def caption_mapper(min_score=0.5, num_negatives=0, no_prob=0.0, full_prob=1.0, **more) -> PseudoGroundingDatasetMapper:
    return PseudoGroundingDatasetMapper(
        min_score=min_score,
        num_negatives=num_negatives,
        no_negatives_prob=no_prob,
        full_negatives_prob=full_prob,
        **options(**more),
    )


@pytest.fixture
def record(tmp_path: Path) -> dict:
    """An image of 64 x 48 with two red dogs, a cat, and a crowd."""
    boxes = [
        annotation((4.0, 6.0, 24.0, 16.0), RED_DOG),
        annotation((30.0, 8.0, 40.0, 40.0), CAT),
        annotation((1.0, 1.0, 9.0, 9.0), RED_DOG),
        annotation((2.0, 2.0, 9.0, 9.0), LAST_DOG, iscrowd=1),
    ]
    return drawn_record(tmp_path, caption=CAPTION, annotations=boxes)


def decode(ids: torch.Tensor, tokenizer: PromptTokenizer) -> str:
    return tokenizer._encoder.decode(ids.tolist()).replace(" ,", ",")


def test_a_sample_has_the_caption_as_prompt_and_a_phrase_for_each_distinct_range(record):
    mapper = grounding_mapper()
    sample = mapper(record)
    (prompt,) = sample["prompts"]
    assert decode(prompt.input_ids, mapper.tokenizer) == CAPTION
    assert prompt.phrases == ("red dog", "cat")
    assert prompt.category_ids.tolist() == [-1, -1] and prompt.mlm_labels is None
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [30, 8, 40, 40], [1, 1, 9, 9]]
    assert instances.gt_classes.tolist() == [0, 1, 0] and instances.gt_category_ids.tolist() == [-1, -1, -1]
    assert words_of_boxes(mapper, sample) == ["red dog", "cat", "red dog"]
    assert "dropped" not in sample
    assert {key: sample[key] for key in ("image_id", "width", "height")} == {"image_id": 7, "width": 64, "height": 48}


def test_the_dataset_dict_stays_as_it_is(record):
    before = pickle.dumps(record)
    grounding_mapper(augmentations=[T.RandomFlip(1.0)], flip_words=True, mask_prob=0.5)(record)
    caption_mapper(augmentations=[T.RandomFlip(1.0)], num_negatives=3)({**record, "negative_captions": ["x y"]})
    assert pickle.dumps(record) == before


def test_several_ranges_in_any_order_are_one_phrase(record):
    boxes = [annotation((4, 6, 24, 16), (6, 9), LAST_DOG), annotation((1, 1, 9, 9), LAST_DOG, (6, 9))]
    mapper = grounding_mapper()
    sample = mapper({**record, "annotations": boxes})
    assert sample["prompts"][0].phrases == ("dog dog",) and sample["instances"].gt_classes.tolist() == [0, 0]
    assert words_of_boxes(mapper, sample) == ["dog dog"] * 2


def test_lists_as_a_json_file_has_them_are_read(record):
    boxes = [{**annotation([4, 6, 20, 10]), "bbox_mode": BoxMode.XYWH_ABS, "tokens_positive": [[2, 9]]}]
    sample = grounding_mapper()({**record, "annotations": boxes})
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16]]
    assert sample["prompts"][0].phrases == ("red dog",)


def test_a_caption_without_boxes_is_a_prompt_without_phrases(record):
    for mapper in (grounding_mapper(mask_prob=0.5), caption_mapper()):
        sample = mapper({**record, "annotations": record["annotations"][3:]})
        assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
        assert sample["instances"].gt_classes.dtype == sample["instances"].gt_category_ids.dtype == torch.int64
        assert sample["prompts"][0].phrase_token_map.shape == (0, len(sample["prompts"][0]))


def test_boxes_of_phrases_cut_off_are_dropped_and_counted(record):
    # [CLS] a red dog left of the [SEP]: 6 of 11 tokens fit, "cat" is the seventh word.
    mapper = grounding_mapper(max_tokens=8)
    sample = mapper(record)
    assert len(sample["prompts"][0]) == 8
    assert words_of_boxes(mapper, sample) == ["red dog", "red dog"]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 24, 16], [1, 1, 9, 9]]
    assert sample["dropped"] == {"tokens": 5, "phrases": 1, "boxes": 1}


def test_a_caption_that_just_fits_drops_nothing(record):
    sample = grounding_mapper(max_tokens=13)(record)
    assert len(sample["prompts"][0]) == 13 and "dropped" not in sample


@pytest.mark.parametrize("caption", ["\u202edog \u0643\u0644\u0628", "dog\x00\x07", "dog \ud7ff\U0001f415"])
def test_foreign_and_control_characters_are_tokens_like_any(record, caption):
    mapper = grounding_mapper()
    begin, length = caption.index("dog"), len(caption)
    boxes = [annotation((4, 6, 24, 16), (begin, begin + 3)), annotation((4, 6, 24, 16), (length - 1, length))]
    sample = mapper({**record, "caption": caption, "annotations": boxes})
    assert words_of_boxes(mapper, sample)[0] == "dog"


def test_a_phrase_of_control_characters_has_no_token_and_is_counted(record):
    boxes = [annotation((4, 6, 24, 16), (0, 3)), annotation((1, 1, 9, 9), (4, 6))]
    sample = grounding_mapper()({**record, "caption": "dog \x01\x02", "annotations": boxes})
    assert len(sample["instances"]) == 1 and sample["dropped"] == {"phrases": 1, "boxes": 1}


@pytest.mark.parametrize(
    ("flip_words", "augmentation", "expected"),
    [
        (True, T.RandomFlip(1.0), "a red dog right of the cat, and a dog"),
        (False, T.RandomFlip(1.0), CAPTION),
        (True, T.RandomFlip(0.0), CAPTION),
        (True, T.RandomFlip(1.0, horizontal=False, vertical=True), CAPTION),
    ],
)
def test_a_mirrored_image_swaps_left_and_right(record, flip_words, augmentation, expected):
    record["annotations"][1]["tokens_positive"] = ((22, 25), (10, 14))  # cat, left
    mapper = grounding_mapper(flip_words=flip_words, augmentations=[augmentation])
    sample = mapper(record)
    assert decode(sample["prompts"][0].input_ids, mapper.tokenizer) == expected
    side = "right" if expected != CAPTION else "left"
    assert words_of_boxes(mapper, sample) == ["red dog", f"{side} cat", "red dog"]


def test_two_mirrors_are_none(record):
    mapper = grounding_mapper(flip_words=True, augmentations=[T.RandomFlip(1.0), T.RandomFlip(1.0)])
    assert decode(mapper(record)["prompts"][0].input_ids, mapper.tokenizer) == CAPTION


def test_masking_hides_tokens_and_keeps_the_phrases(record):
    mapper = grounding_mapper(mask_prob=0.5, mask_only_positives=False)
    plain = grounding_mapper()(record)["prompts"][0]
    prompt = mapper(record)["prompts"][0]
    changed = prompt.input_ids != plain.input_ids
    assert changed.any() and (prompt.input_ids == mapper.tokenizer.mask_id).any()
    assert torch.equal(prompt.mlm_labels[changed], plain.input_ids[changed])
    asked = prompt.mlm_labels != IGNORED
    assert torch.equal(prompt.mlm_labels[asked], plain.input_ids[asked])
    assert torch.equal(prompt.phrase_token_map, plain.phrase_token_map) and prompt.phrases == plain.phrases


def test_only_phrases_with_a_box_are_to_be_restored_if_asked(record):
    mapper = grounding_mapper(mask_prob=1.0, augmentations=[T.CropTransform(0, 0, 26, 20)])
    (prompt,) = mapper(record)["prompts"]
    asked = prompt.mlm_labels != IGNORED
    # The crop has cut off the only box of "cat".
    assert torch.equal(asked, prompt.phrase_token_map[0])
    assert prompt.phrases == ("red dog", "cat")


def test_the_seed_decides_what_is_masked_and_masking_changes_nothing_else(record):
    mapper = grounding_mapper(mask_prob=0.5, mask_only_positives=False, augmentations=[T.RandomFlip(0.5)])
    samples = [mapper({**record, "sample_seed": seed}) for seed in (1, 1, 2)]
    ids = [sample["prompts"][0].input_ids.tolist() for sample in samples]
    assert ids[0] == ids[1] != ids[2]
    plain = grounding_mapper(augmentations=[T.RandomFlip(0.5)])({**record, "sample_seed": 1})
    assert torch.equal(plain["image"], samples[0]["image"])
    assert torch.equal(plain["instances"].gt_boxes.tensor, samples[0]["instances"].gt_boxes.tensor)


@pytest.mark.parametrize("scores_others", [False, True])
def test_words_of_other_images_captions_are_restored_on_request_only(record, scores_others):
    mapper = caption_mapper(
        num_negatives=3, mask_prob=1.0, mask_only_positives=False, scores_other_captions=scores_others
    )
    record |= {
        "negative_captions": ["two horses", "a green boat", "the old house"],
        "annotations": record["annotations"][:2],
    }
    own = set(mapper.tokenizer(prompt_from_caption(f"{CAPTION}.", [])).input_ids[1:-1].tolist())
    for seed in range(8):
        prompt = mapper({**record, "sample_seed": seed})["prompts"][0]
        asked = prompt.mlm_labels[prompt.mlm_labels != IGNORED].tolist()
        # The words of the own caption, once each; or all words, and the tokens at both ends.
        assert len(asked) == (len(prompt) if scores_others else mapper.tokenizer.count_tokens(f"{CAPTION}."))
        assert scores_others or set(asked) == own


def test_a_tokenizer_without_mask_token_is_an_error_at_once(monkeypatch):
    def no_mask(tokenizer):
        raise ValueError("no mask token")

    monkeypatch.setattr(PromptTokenizer, "mask_id", property(no_mask))
    grounding_mapper()
    with pytest.raises(ValueError, match="no mask token"):
        grounding_mapper(mask_prob=0.1)


def test_at_test_time_phrases_count_and_nothing_is_mirrored_or_masked(record):
    mapper = grounding_mapper(is_train=False)
    sample = mapper(record)
    (prompt,) = sample["prompts"]
    assert prompt.phrases == ("red dog", "cat", "dog") and prompt.category_ids.tolist() == [0, 1, 2]
    assert prompt.mlm_labels is None and "instances" not in sample
    assert decode(prompt.input_ids, mapper.tokenizer) == CAPTION


def test_an_image_may_come_as_bytes(record):
    content = Path(record["file_name"]).read_bytes()
    expected = grounding_mapper()(record)
    sample = grounding_mapper()({**record, "file_name": "shard.tar/a.png", "image_bytes": content})
    assert torch.equal(sample["image"], expected["image"])
    assert sample["file_name"] == "shard.tar/a.png" and "image_bytes" not in sample


def test_height_and_width_are_those_of_the_image_where_the_record_has_none(record):
    del record["height"], record["width"]
    sample = grounding_mapper()(record)
    assert (sample["height"], sample["width"]) == (48, 64)


# --- captions with pseudo boxes


@pytest.mark.parametrize(("min_score", "kept"), [(0.0, 3), (0.4, 3), (0.41, 2), (0.6, 2), (0.61, 1)])
def test_boxes_count_from_their_score_on_and_drawn_ones_always(record, min_score, kept):
    boxes = [{**item, **score} for item, score in zip(record["annotations"], ({"score": 0.4}, {"score": 0.6}, {}))]
    sample = caption_mapper(min_score=min_score)({**record, "annotations": boxes})
    assert len(sample["instances"]) == kept
    assert "dropped" not in sample


def test_phrases_without_a_kept_box_are_no_phrases(record):
    boxes = [{**item, "score": score} for item, score in zip(record["annotations"], (0.9, 0.1, 0.9))]
    sample = caption_mapper()({**record, "annotations": boxes})
    assert sample["prompts"][0].phrases == ("red dog",) and sample["instances"].gt_classes.tolist() == [0, 0]


NEGATIVES = ["three birds on a wire", "an old red house", "left of a boat"]


def test_negative_captions_share_the_prompt_and_the_boxes_keep_their_words(record):
    mapper = caption_mapper(num_negatives=3)
    texts = set()
    for seed in range(8):
        sample = mapper({**record, "negative_captions": NEGATIVES, "sample_seed": seed})
        (prompt,) = sample["prompts"]
        text = decode(prompt.input_ids, mapper.tokenizer)
        texts.add(text)
        assert all(caption in text for caption in [CAPTION, *NEGATIVES])
        assert words_of_boxes(mapper, sample) == ["red dog", "cat", "red dog"]
        assert prompt.category_ids.tolist() == [-1, -1]
    assert len(texts) > 1


def test_the_number_of_negative_captions_is_drawn(record):
    mapper = caption_mapper(num_negatives=2)
    prompt = mapper({**record, "negative_captions": NEGATIVES})["prompts"][0]
    assert sum(caption in decode(prompt.input_ids, mapper.tokenizer) for caption in NEGATIVES) == 2
    mapper = caption_mapper(num_negatives=2, no_prob=1.0)
    prompt = mapper({**record, "negative_captions": NEGATIVES})["prompts"][0]
    assert not any(caption in decode(prompt.input_ids, mapper.tokenizer) for caption in NEGATIVES)
    mapper = caption_mapper(num_negatives=20, full_prob=0.0)
    counts = set()
    for seed in range(10):
        prompt = mapper({**record, "negative_captions": NEGATIVES, "sample_seed": seed})["prompts"][0]
        counts.add(sum(caption in decode(prompt.input_ids, mapper.tokenizer) for caption in NEGATIVES))
    assert len(counts) > 1


def test_negative_captions_are_not_of_the_mirrored_image(record):
    mapper = caption_mapper(num_negatives=3, augmentations=[T.RandomFlip(1.0)], flip_words=True)
    sample = mapper({**record, "negative_captions": NEGATIVES})
    text = decode(sample["prompts"][0].input_ids, mapper.tokenizer)
    assert "dog right of the cat" in text and "left of a boat" in text


def test_at_test_time_a_caption_stands_alone(record):
    mapper = caption_mapper(num_negatives=3, is_train=False)
    (prompt,) = mapper({**record, "negative_captions": NEGATIVES})["prompts"]
    assert decode(prompt.input_ids, mapper.tokenizer) == CAPTION


def test_a_mapper_can_be_sent_to_a_worker(record):
    mapper = pickle.loads(pickle.dumps(caption_mapper()))
    assert len(mapper(record)["instances"]) == 3
