import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.layers.reading import BOTH_WAYS, CAUSAL
from glipv2_d2.prompts.user_prompts import caption_prompt
from glipv2_d2.structures import TokenBatch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def cfg(tiny_cfg, drawn_dataset):
    # An untrained head gives about 0.01 to everything.
    tiny_cfg.merge_from_list(["DATASETS.TEST", (drawn_dataset,), "MODEL.GLIPV2.TEST.SCORE_THRESH", 0.001])
    tiny_cfg.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 20])
    return tiny_cfg


def make_predictor(cfg):
    torch.manual_seed(0)
    return GLIPv2Predictor(cfg)


def make_image(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def assert_same(one, other):
    assert len(one) == len(other) > 0
    assert torch.equal(one.pred_classes, other.pred_classes)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor, atol=1e-2, rtol=1e-4)


def capture_input(predictor):
    """Replace the model by one that keeps what it is given."""
    captured = []
    predictor.model = lambda inputs: captured.append(inputs) or [{} for _ in inputs]
    return captured


def test_names_give_classes_that_are_rows_of_the_phrases(cfg):
    image = make_image(48, 80)
    output = make_predictor(cfg)(image, ["zebra", "big_dog (animal)", "cup"])
    assert output["phrases"] == ["zebra", "big_dog (animal)", "cup"]
    instances = output["instances"]
    assert instances.image_size == (48, 80)
    assert len(instances) > 0 and set(instances.pred_classes.tolist()) <= {0, 1, 2}
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 80).all() and (boxes[:, 3] <= 48).all()
    assert not boxes.requires_grad


def test_names_of_a_shortlist_keep_their_rows(cfg):
    cfg.merge_from_list(["MODEL.GLIPV2.CONTRASTIVE.ENABLED", True, "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 1])
    names = ["zebra", "traffic light", "cup", "black dog"]
    exact = make_predictor(cfg)
    cfg.MODEL.GLIPV2.TEST.SHORTLIST = 2
    output = make_predictor(cfg)(make_image(), names)
    assert output["phrases"] == names
    chosen = sorted(set(output["instances"].pred_classes.tolist()))
    assert len(chosen) == 2
    alone = exact(make_image(), [names[row] for row in chosen])["instances"]
    assert torch.equal(output["instances"].scores, alone.scores)
    assert torch.equal(output["instances"].pred_classes, torch.tensor(chosen)[alone.pred_classes])


def test_chunks_of_names_keep_their_rows(cfg):
    names = ["zebra", "dog", "cup"]
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 1, "TEST.DETECTIONS_PER_IMAGE", 0])
    # Each chunk in a pass of its own: products of several at once may round differently.
    cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS = 1
    predictor = make_predictor(cfg)
    output = predictor(make_image(), names)
    assert output["phrases"] == names
    for row, name in enumerate(names):
        chunk = output["instances"][output["instances"].pred_classes == row]
        alone = predictor(make_image(), [name])["instances"]
        assert torch.equal(chunk.scores.sort().values, alone.scores.sort().values)


def test_caption_is_grounded_by_its_noun_phrases(cfg):
    output = make_predictor(cfg)(make_image(), "a man on a skateboard")
    assert output["phrases"] == ["a man", "a skateboard"]


@pytest.mark.parametrize("text", ["zebra . orange . can", "zebra, orange, can.", "zebra\norange\ncan\ncan"])
def test_a_class_list_as_text_is_a_list_of_names(cfg, text):
    predictor = make_predictor(cfg)
    one, other = predictor(make_image(), text), predictor(make_image(), ["zebra", "orange", "can"])
    assert one["phrases"] == other["phrases"] == ["zebra", "orange", "can"]
    assert_same(one["instances"], other["instances"])


def test_a_class_list_as_text_may_pass_the_token_limit(cfg):
    predictor = make_predictor(cfg)
    captured = capture_input(predictor)
    names = [f"wooden thing {number}" for number in range(300)]
    assert predictor(make_image(), ", ".join(names))["phrases"] == names
    assert len(captured[0][0]["prompts"]) > 1


def test_caption_without_a_noun_phrase_is_one_phrase(cfg):
    assert make_predictor(cfg)(make_image(), "of the")["phrases"] == ["of the"]


@pytest.mark.parametrize(
    "phrases, expected", [(["Skateboard", "man"], ["Skateboard", "man"]), ([(2, 5), (9, 21)], ["man", "a skateboard"])]
)
def test_given_phrases_replace_the_noun_phrases(cfg, phrases, expected):
    predictor = make_predictor(cfg)
    captured = capture_input(predictor)
    assert predictor(make_image(), "a man on a skateboard", phrases)["phrases"] == expected
    (prompt,) = captured[0][0]["prompts"]
    # [CLS] a man on a skate ##board [SEP]; both orders below name man = token 2 and a skateboard = tokens 4 to 6.
    tokens = [row.nonzero().flatten().tolist() for row in prompt.phrase_token_map]
    pieces = predictor.tokenizer.count_tokens("skateboard")
    board = list(range(5, 5 + pieces))
    assert tokens == ([board, [2]] if phrases[0] == "Skateboard" else [[2], [4, *board]])


def test_no_prompt_means_the_names_of_the_test_dataset(cfg):
    predictor = make_predictor(cfg)
    output = predictor(make_image())
    assert output["phrases"] == ["red box", "green box", "blue box"]
    assert_same(output["instances"], predictor(make_image(), ["red box", "green box", "blue box"])["instances"])


def test_no_prompt_and_no_test_dataset_is_an_error(cfg):
    cfg.merge_from_list(["DATASETS.TEST", ()])
    with pytest.raises(ValueError, match="DATASETS.TEST"):
        make_predictor(cfg)(make_image())


def test_batch_gives_what_single_calls_give_whatever_was_asked_before(cfg):
    predictor = make_predictor(cfg)
    images = [make_image(64, 64, 1), make_image(48, 80, 2), make_image(64, 64, 3), make_image(64, 64, 1)]
    prompts = [["dog"], "a man on a skateboard", None, ["zebra", "a rather long name of a thing", "cup"]]
    batch = predictor.predict_batch(images, prompts)
    for image, prompt, output in reversed(list(zip(images, prompts, batch))):
        single = predictor(image, prompt)
        assert single["phrases"] == output["phrases"]
        assert_same(single["instances"], output["instances"])


def test_default_predictor_of_detectron2_works_unchanged(cfg):
    expected = make_predictor(cfg)(make_image())["instances"]
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = ""
    assert_same(DefaultPredictor(cfg)(make_image())["instances"], expected)


def test_weights_are_read_from_the_config(cfg, tmp_path):
    predictor = make_predictor(cfg)
    torch.save({"model": predictor.model.state_dict()}, tmp_path / "weights.pth")
    expected = predictor(make_image(), ["dog"])["instances"]
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.manual_seed(1)
    assert_same(GLIPv2Predictor(cfg)(make_image(), ["dog"])["instances"], expected)


@pytest.mark.parametrize("image_format, first_channel", [("BGR", 10), ("RGB", 30)])
def test_image_reaches_the_model_in_its_format_and_size(cfg, image_format, first_channel):
    cfg.INPUT.FORMAT = image_format
    predictor = make_predictor(cfg)
    captured = capture_input(predictor)
    image = np.full((62, 83, 3), (10, 20, 30), np.uint8)
    predictor(image, ["dog"])
    model_input = captured[0][0]
    # 64 * 83 / 62 = 85.7, which GLIP cuts to 85.
    assert model_input["image"].shape == (3, 64, 85)
    assert model_input["image"][:, 5, 5].tolist() == [first_channel, 20, 40 - first_channel]
    assert (model_input["height"], model_input["width"]) == (62, 83)


def test_floating_point_image_equals_the_one_of_integers(cfg):
    # 64 pixels need no resizing, which rounds for integers.
    predictor = make_predictor(cfg)
    one, other = (predictor(make_image().astype(dtype), ["dog"])["instances"] for dtype in ("uint8", "float64"))
    assert_same(one, other)


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "numpy array.*NoneType"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), -0.5), "found -0.5 to -0.5"),
        (np.full((4, 4, 3), 1e30), "found 1e[+]30"),
        (np.full((4, 4, 3), 0.9, np.float32), "none above 0.9; multiply an image in 0..1 by 255"),
    ],
)
def test_wrong_image_is_named(cfg, image, message):
    with pytest.raises((TypeError, ValueError), match=f"image: .*{message}"):
        make_predictor(cfg)(image, ["dog"])


def test_a_black_image_of_any_type_is_an_image(cfg):
    predictor = make_predictor(cfg)
    one, other = (predictor(np.zeros((64, 64, 3), dtype), ["dog"])["instances"] for dtype in ("uint8", "float32"))
    assert_same(one, other)


@pytest.mark.parametrize(
    "prompt, phrases, message",
    [
        ([], None, "at least one name"),
        ("  ", None, "some words"),
        (["dog", " "], None, r"names\[1\]"),
        (["dog", 3], None, r"names\[1\]"),
        (["dog " * 300], None, r"names\[0\].*tokens"),
        (["dog"], ["dog"], "expected a caption"),
        ("a dog", ["cat"], "'cat'"),
        ("a dog", [], "at least one"),
    ],
)
def test_wrong_prompt_is_named(cfg, prompt, phrases, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_predictor(cfg)(make_image(), prompt, phrases)


@pytest.mark.parametrize("prompts", ["dog", [["dog"]]])
def test_batch_needs_one_prompt_per_image(cfg, prompts):
    with pytest.raises(ValueError, match="each of 2 images"):
        make_predictor(cfg).predict_batch([make_image()] * 2, prompts)


def test_phrases_past_the_token_limit_are_reported_and_not_found(cfg, caplog):
    predictor = make_predictor(cfg)
    caption = "a dog " + "and then " * 130 + "a cat"
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        output = predictor(make_image(), caption, ["a dog", "a cat"])
    assert "a cat" in caplog.text and "256 tokens" in caplog.text
    assert set(output["instances"].pred_classes.tolist()) == {0}


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (3, 300), (20, 400)])
def test_boxes_are_cut_to_the_image(cfg, size):
    boxes = make_predictor(cfg)(make_image(*size), ["dog"])["instances"].pred_boxes.tensor
    assert len(boxes) and (boxes >= 0).all() and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda predictor: pickle.loads(pickle.dumps(predictor))])
def test_a_copy_of_a_predictor_predicts_the_same(cfg, copied):
    predictor = make_predictor(cfg)
    # Before and after the first prediction: caches and prompts come along, or are made again.
    for other in (copied(predictor), copied(predictor)):
        for prompt in (None, ["dog", "cat"], "a man on a skateboard"):
            assert_same(other(make_image(), prompt)["instances"], predictor(make_image(), prompt)["instances"])


def test_threads_share_a_predictor(cfg):
    predictor = make_predictor(cfg)
    prompts = [["dog"], "a man on a skateboard", None, ["zebra", "cup"]] * 2
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda prompt: predictor(make_image(), prompt), prompts))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_same(output["instances"], predictor(make_image(), prompt)["instances"])


@pytest.mark.parametrize(
    "prompt, message",
    [
        (["汽车", "dog"], "names: expected words of the text encoder's vocabulary, found '汽', '车'"),
        ("a 🦄 on the street", "caption: expected words of the text encoder's vocabulary, found '🦄'"),
        (["🦊", "🦄 "], "names: expected names with different tokens, found '🦊', '🦄 ' with the same"),
        (["résumé", "resume"], "names: expected names with different tokens, found 'résumé', 'resume'"),
    ],
)
def test_text_outside_the_vocabulary_is_said_once(cfg, caplog, prompt, message):
    predictor = make_predictor(cfg)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        predictor(make_image(), prompt)
        predictor(make_image(), prompt)
    assert caplog.text.count(message) == 1


def test_unknown_image_format_names_the_key(cfg):
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="INPUT.FORMAT.*'L'"):
        GLIPv2Predictor(cfg)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_given_caption_is_read_word_by_word_if_asked(cfg, is_causal):
    """Grounded captioning as Flickr30K grounds it: what follows a phrase changes nothing of it."""
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.CAUSAL_CAPTIONS", is_causal])
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    predictor = make_predictor(cfg)
    first, second = (predictor(image, f"a cat near a {end}", ["cat"])["instances"] for end in ("dog", "cow"))
    assert len(first) and torch.equal(first.scores, second.scores) == is_causal
    # The same by hand.
    model, reading = predictor.model, CAUSAL if is_causal else BOTH_WAYS
    prompt = caption_prompt("a cat near a dog", ["cat"], predictor.tokenizer)
    with torch.no_grad():
        images = model.preprocess_image([predictor._model_input(image)])
        features = model.visual_features(images)
        language = model.read(TokenBatch.from_prompts([prompt]), reading)
        fused = model.fuse(features, language, reading)
        (found,) = model.head.inference(
            fused.predictions, model.anchor_generator(features), images.image_sizes, [prompt], 0
        )
    torch.testing.assert_close(first.scores, found.scores[: len(first)])
