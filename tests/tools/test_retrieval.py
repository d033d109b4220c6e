from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes
from evaluate_retrieval import annotated_samples, rank_names

from glipv2_d2.data.image_reading import UnreadableImageError
from glipv2_d2.structures import GroundingPredictions, LanguageFeatures, TokenizedPrompt

# Four anchors; the first two belong to box 0, the third to box 1, the last to none.
MATCHED = torch.tensor([0, 0, 1, -1])
# Probabilities of the tokens of each prompt at each anchor; the prompts are told apart by their length.
TOKENS = {
    3: torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.5, 0.2], [0.0, 0.3, 0.6], [0.0, 1.0, 1.0]]),
    2: torch.tensor([[0.0, 0.8], [0.0, 0.4], [0.0, 0.7], [0.0, 1.0]]),
}


def make_prompt(num_tokens, category_ids):
    token_map = torch.zeros(len(category_ids), num_tokens, dtype=torch.bool)
    token_map[range(len(category_ids)), range(1, num_tokens)] = True
    return TokenizedPrompt(
        torch.zeros(num_tokens, dtype=torch.int64), token_map, torch.tensor(category_ids), tuple(map(str, category_ids))
    )


def fuse(levels, language):
    """Predict the table above, whatever the image."""
    logits = TOKENS[language.hidden.shape[1]].logit()[None]
    return SimpleNamespace(predictions=GroundingPredictions([logits[:, :3], logits[:, 3:]], [], []))


def make_model(contrastive_head=None):
    return SimpleNamespace(
        device="cpu",
        preprocess_image=lambda samples: samples[0]["image"][None],
        visual_features=lambda images: [torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 1)],
        anchor_generator=lambda levels: [Boxes(torch.zeros(3, 4)), Boxes(torch.zeros(1, 4))],
        read=lambda tokens: LanguageFeatures(*(torch.zeros(1, tokens.input_ids.shape[1], 2),) * 2, tokens.mask),
        fuse=fuse,
        head=SimpleNamespace(matcher=lambda anchors, boxes: MATCHED),
        contrastive_head=contrastive_head,
    )


def sample(category_ids):
    return {
        "image": torch.zeros(3, 8, 8),
        "gt_boxes": torch.zeros(len(category_ids), 4),
        "gt_category_ids": torch.tensor(category_ids),
    }


PROMPTS = [make_prompt(3, [10, 11]), make_prompt(2, [12])]


@pytest.mark.parametrize(
    "category_ids, ranks",
    [
        # Box 0 has the means 0.7, 0.15 and 0.6 over its anchors; box 1 has 0.3, 0.6 and 0.7.
        ([10, 12], [1, 1]),
        ([12, 11], [2, 2]),
        ([11, 10], [3, 3]),
    ],
)
def test_rank_counts_the_names_of_all_prompts_that_score_as_high(category_ids, ranks):
    result = rank_names(make_model(), [sample(category_ids)], PROMPTS)
    assert result.ranks.tolist() == ranks
    assert result.num_names == 3 and result.num_without_anchor == 0


def test_box_that_no_anchor_matches_has_no_rank():
    result = rank_names(make_model(), [sample([10, 12, 11])], PROMPTS)
    assert len(result.ranks) == 2 and result.num_without_anchor == 1


def test_recall_is_the_share_of_ranks_up_to_the_top():
    result = rank_names(make_model(), [sample([10, 11]), sample([11, 10])], PROMPTS)
    assert result.ranks.tolist() == [1, 2, 3, 3]
    assert [result.recall_at(top) for top in (1, 2, 3)] == [25.0, 50.0, 100.0]


def test_contrastive_space_compares_embedded_regions_and_words():
    # Regions and words along two axes: the second prompt alone has a word on the axis of the regions.
    embedded = {3: [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], 2: [[0.0, 1.0], [1.0, 0.0]]}

    def head(regions, words):
        return torch.tensor([[1.0, 0.0]]).expand(len(regions), 2), torch.tensor(embedded[len(words)])

    result = rank_names(make_model(head), [sample([12, 10])], PROMPTS, "contrastive")
    assert result.ranks.tolist() == [1, 3]


def test_model_without_contrast_has_no_contrastive_space():
    with pytest.raises(ValueError, match="CONTRASTIVE"):
        rank_names(make_model(), [sample([10])], PROMPTS, "contrastive")


def test_an_image_that_cannot_be_read_is_named_and_left_out(capsys):
    def read(item):
        if item["file_name"] == "bad.png":
            raise UnreadableImageError("bad.png: expected an image, found text")
        return {"image": torch.zeros(3, 8, 8)}

    dicts = [{"file_name": name, "height": 8, "width": 8, "annotations": []} for name in ("a.png", "bad.png", "c.png")]
    found = list(annotated_samples(SimpleNamespace(test_image=read), dicts))
    assert len(found) == 2 and capsys.readouterr().err == "skipped bad.png: expected an image, found text\n"
