"""Masked language modelling against numbers of the official implementation, from masked ids to loss and gradients."""

import json

import cv2
import numpy as np
import pytest
import torch
from batch_samples import text_case
from conftest import ASSETS, load_config
from official_names import to_official
from parity_weights import TINY_FOLDER, TINY_SALT, official_state_dict, tensor_for
from torch.testing import assert_close

from glipv2_d2 import PromptTokenizer, convert_glip_state_dict
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.heads.mlm_head import MLMHead
from glipv2_d2.prompts.builder import prompt_from_caption
from glipv2_d2.structures import TokenBatch, TokenizedPrompt

NAMES = ["mlm_all", "mlm_only_positives"]
DIM, VOCABULARY = 48, 30522
SHAPES = {
    "transform.dense.weight": (DIM, DIM),
    "transform.dense.bias": (DIM,),
    "transform.LayerNorm.weight": (DIM,),
    "transform.LayerNorm.bias": (DIM,),
    "decoder.weight": (VOCABULARY, DIM),
    "decoder.bias": (VOCABULARY,),
    "bias": (VOCABULARY,),
}


def load(name):
    folder = ASSETS / "parity" / "v2"
    with np.load(folder / f"{name}.npz") as arrays:
        arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return json.loads((folder / f"{name}.json").read_text()), arrays


def official_head():
    """The weights of the head by their official names; those of a tiny tower stand beside them in a checkpoint."""
    names = [f"rpn.head.mlm_head.{name}" for name in SHAPES]
    return {name: torch.from_numpy(tensor_for(name, shape, TINY_SALT)) for name, shape in zip(names, SHAPES.values())}


@pytest.fixture(scope="module")
def weights():
    return convert_glip_state_dict(official_state_dict() | official_head())[0]


@pytest.fixture
def head(weights):
    head = MLMHead(language_dim=DIM, vocab_size=VOCABULARY)
    prefix = "mlm_head."
    head.load_state_dict({key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)})
    return head


def masked_prompts(arrays):
    """The masked prompts of the file, at their real lengths."""
    prompts = []
    for original, masked, labels in zip(arrays["original_ids"], arrays["masked_ids"], arrays["labels"]):
        length = int((original != 0).sum())
        no_phrases = torch.zeros(0, length, dtype=torch.bool)
        empty = torch.zeros(0, dtype=torch.int64)
        prompts.append(TokenizedPrompt(masked[:length].long(), no_phrases, empty, (), labels[:length].long()))
    return prompts


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_masked_tokens_are_the_official_ones(name, head):
    _, arrays = load(name)
    logits = head(arrays["text_feature"])
    assert_close(logits[:, ::97], arrays["logits_every_97th"], atol=3e-5, rtol=1e-4)
    assert_close(logits.logsumexp(1), arrays["logsumexp"], atol=3e-5, rtol=1e-4)
    rows, columns = arrays["labelled_positions"].T
    labels = arrays["labels"][rows, columns].long()
    assert_close(logits.gather(1, labels[:, None])[:, 0], arrays["logit_of_label"], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_the_official_ones(name, head):
    facts, arrays = load(name)
    prompts = masked_prompts(arrays)
    # Only the labelled places may be read.
    hidden = torch.full((2, max(map(len, prompts)), DIM), float("nan"))
    rows, columns = arrays["labelled_positions"].T
    hidden[rows, columns] = arrays["text_feature"]
    assert len(rows) == facts["labelled"]
    loss = head.losses(*text_case(hidden, prompts))["loss_mlm"]
    assert_close(loss.detach(), torch.tensor(facts["losses"]["mlm_loss"]), atol=1e-4, rtol=0)

    loss.backward()
    gradients = {f"mlm_head.{key}": value.grad for key, value in head.named_parameters()}
    official = to_official(gradients)
    assert official.keys() == {f"rpn.head.mlm_head.{key}" for key in SHAPES}
    assert facts["gradients"].keys() == official.keys() - {"rpn.head.mlm_head.decoder.bias"}
    for key, expected in facts["gradients"].items():
        gradient = official[key].double()
        tolerance = 1e-3 * expected["l2"]
        probe = torch.from_numpy(tensor_for("probe." + key, tuple(gradient.shape), "")).double()
        assert gradient.norm().item() == pytest.approx(expected["l2"], abs=tolerance), key
        assert (gradient * probe).sum().item() == pytest.approx(expected["probe"], abs=tolerance), key
        assert gradient.abs().max().item() == pytest.approx(expected["max_abs"], abs=tolerance), key


# --- the whole model reads masked prompts -----------------------------------------------------------------------------


def tiny_cfg():
    cfg = load_config("glip/glip_swin_t_c.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SWIN.DROP_PATH_RATE", 0.0),
            *("MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [2, 2, 2, 2], "MODEL.SWIN.NUM_HEADS", [2, 4, 8, 16]),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.GLIPV2.TOWER.CHANNELS", 32, "MODEL.GLIPV2.TOWER.NUM_BLOCKS", 2),
            *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", DIM, "MODEL.TEXT_ENCODER.NUM_LAYERS", 2),
            *("MODEL.TEXT_ENCODER.NUM_HEADS", 4, "MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE", 192),
        ]
    )
    return cfg


@torch.no_grad()
def test_fused_text_of_the_tiny_model_gives_the_official_loss(weights, head):
    model = build_model(tiny_cfg()).eval()
    model.load_state_dict({key: weights[key] for key in model.state_dict() if key in weights}, strict=False)
    resized = [cv2.imread(str(TINY_FOLDER / f"img{row}_resized.png")).transpose(2, 0, 1) for row in range(2)]
    images = model.preprocess_image([{"image": torch.from_numpy(np.ascontiguousarray(image))} for image in resized])
    features = model.backbone(images.tensor)
    levels = [features[level] for level in model.head_in_features]
    for name in NAMES:
        facts, arrays = load(name)
        prompts = masked_prompts(arrays)
        whole = PromptTokenizer()(prompt_from_caption(facts["captions"][0], []))
        assert whole.input_ids.tolist() == arrays["original_ids"][0, : len(whole)].tolist()
        _, language = model.fusion_tower(levels, model.text_encoder(TokenBatch.from_prompts(prompts)))
        rows, columns = arrays["labelled_positions"].T
        assert_close(language.hidden[rows, columns], arrays["text_feature"], atol=3e-4, rtol=1e-4)
        loss = head.losses(*text_case(language.hidden, prompts))["loss_mlm"]
        assert_close(loss, torch.tensor(facts["losses"]["mlm_loss"]), atol=1e-4, rtol=0)
