"""Detect, segment, answer and describe in single images."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import Tensor

from ..checkpoint.checkpointer import load_for_results
from ..checkpoint.pretrained_folder import find_pretrained_config, save_pretrained
from ..detectron2_keys import check_config
from ..errors import InputError
from ..modeling.phrase_results import referred_mask
from ..prompts.answers import AnswerVocabulary
from ..prompts.questions import question_to_answer
from ..prompts.tokenizer import PromptTokenizer
from ..prompts.user_prompts import caption_prompt, names_in, names_prompts
from ..prompts.vocabulary import DefaultPrompts, build_default_prompts
from ..structures import CharSpan, TokenizedPrompt
from .caption_results import ground_caption
from .command_line import build_config
from .multi_scale import multi_scale, single_scale

# Names as a list or as one text, or a caption; None: the names of DATASETS.TEST[0].
NamesOrCaption = Sequence[str] | str | None

# Number of answers that are returned.
_BEST_ANSWERS = 5


class GLIPv2Predictor(DefaultPredictor):
    """Detect in single images what a prompt names; nothing is kept between two calls.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``; it is not changed.

    Raises:
        InputError, OSError: The config does not fit together or changes a key that nothing reads, or a file that it
            names cannot be read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # The constructor of DefaultPredictor is left out: it reads weights and resizes images by other rules than GLIP.
        cfg = cfg.clone()
        check_config(cfg)
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT: expected 'RGB' or 'BGR', found {cfg.INPUT.FORMAT!r}")
        # Code written for DefaultPredictor reads it.
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        load_for_results(self.model, cfg)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.aug = single_scale(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.tokenizer = PromptTokenizer.from_config(cfg)
        self._tokenize_names = functools.partial(
            names_prompts,
            tokenizer=self.tokenizer,
            separator=cfg.INPUT.PROMPT.SEPARATOR,
            chunk_size=cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE,
        )
        vqa = cfg.MODEL.GLIPV2.VQA
        self._answers = AnswerVocabulary.from_config(cfg) if vqa.ENABLED else None
        self._grounds_questions = vqa.GROUNDED
        self._referring_thresh = cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH
        self._default_prompts = DefaultPrompts(functools.partial(build_default_prompts, cfg))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, opts: Sequence[str] = ()) -> GLIPv2Predictor:
        """Make a predictor from a folder that ``save_pretrained`` wrote; its files are checked, nothing is executed.

        Args:
            folder: Path of the folder.
            opts: Pairs of KEY VALUE that change its config. Without MODEL.DEVICE among them the model uses the GPU if
                there is one, otherwise the CPU.

        Raises:
            InputError, OSError: A file is missing or damaged, or a key or a value is wrong.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(build_config(find_pretrained_config(folder), ["MODEL.DEVICE", device, *opts]))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write model, config and the files that it needs as a folder, see ``checkpoint.pretrained_folder``."""
        save_pretrained(self.model, self.cfg, folder)

    def __call__(
        self,
        original_image: np.ndarray,
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
    ) -> dict[str, Any]:
        """Detect in one image.

        Args:
            original_image: (H, W, 3) uint8 or float in 0..255, channels in BGR order.
            names_or_caption: A sequence of names, of any length; or the same as one text, such as "apple . orange" or
                "apple, orange" (see ``listed_names``); or a caption, whose noun phrases are grounded; None: the names
                of ``DATASETS.TEST[0]``.
            phrases: Only with a caption: parts of it to ground instead of its noun phrases, each as a string that the
                caption holds or as a half-open character range.

        Returns:
            ``instances``, K detections: ``pred_boxes`` (K, 4) XYXY in pixels of the image, ``scores`` (K,) in [0, 1],
            ``pred_classes`` (K,), rows of ``phrases``, and with a mask head ``pred_masks`` (K, H, W) bool; K may be 0.
            ``phrases``: P strings.

        Raises:
            TypeError, InputError: The image or the prompt is not as above.
        """
        return self._predict([original_image], [self._prompts(names_or_caption, phrases)])[0]

    def predict_batch(
        self, original_images: Sequence[np.ndarray], names_or_captions: Sequence[NamesOrCaption]
    ) -> list[dict[str, Any]]:
        """Detect in several images, each with its own prompt; the results are those of single calls.

        Raises:
            InputError: There is not one prompt for every image.
        """
        if isinstance(names_or_captions, str) or len(original_images) != len(names_or_captions):
            raise InputError(
                f"names_or_captions: expected a sequence with one prompt for each of {len(original_images)} images, "
                f"found {names_or_captions!r:.100}"
            )
        return self._predict(original_images, [self._prompts(prompt, None) for prompt in names_or_captions])

    def refer(self, original_image: np.ndarray, phrase: str) -> dict[str, Any]:
        """Segment what a phrase refers to.

        Args:
            original_image: See ``__call__``.
            phrase: Names one thing as a whole, such as "the dog on the left".

        Returns:
            ``mask``: (H, W) bool numpy array, the union of the masks of all detections with a score of at least
            ``MODEL.GLIPV2.TEST.REFERRING_THRESH``; if no score is, the mask of the best detection; all False without
            detections. ``instances`` and ``phrases``: see ``__call__``.

        Raises:
            TypeError, InputError: The model has no mask head, or the image or the phrase is not as above.
        """
        if not self.cfg.MODEL.MASK_ON:
            raise InputError("refer: expected a model with a mask head (MODEL.MASK_ON True), found none")
        if not isinstance(phrase, str) or not phrase.strip():
            raise InputError(f"phrase: expected a string that is not blank, found {phrase!r:.100}")
        prompt = caption_prompt(phrase, [(0, len(phrase))], self.tokenizer)
        output = self._predict([original_image], [[prompt]])[0]
        return {"mask": referred_mask(output["instances"], self._referring_thresh).cpu().numpy(), **output}

    def answer(self, original_image: np.ndarray, question: str) -> dict[str, Any]:
        """Answer a question about an image.

        Args:
            original_image: See ``__call__``.
            question: A question such as "how many dogs are there?"; the part past the token limit is cut off, with a
                warning.

        Returns:
            ``answer`` and its ``score`` in [0, 1], the probability of this answer alone; ``answers``, the best five
            answers of the list with their scores; ``instances`` and ``phrases``, see ``__call__``: with
            ``MODEL.GLIPV2.VQA.GROUNDED`` the things that the question names and, under "[answer]", the thing that is
            the answer; otherwise empty.

        Raises:
            TypeError, InputError: The model has no answer head, or the image or the question is not as above.
        """
        if self._answers is None:
            raise InputError(
                "answer: expected a model that answers questions (MODEL.GLIPV2.VQA.ENABLED True), found another"
            )
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"question: expected a string that is not blank, found {question!r:.100}")
        asked = question_to_answer(question, self.tokenizer, grounded=self._grounds_questions)
        if asked.num_lost_tokens or asked.lost_phrases:
            logging.getLogger(__name__).warning(
                "question: %d tokens pass the limit of %d tokens and are not read, %s cannot be found",
                asked.num_lost_tokens,
                self.tokenizer.max_tokens,
                list(asked.lost_phrases),
            )
        output = self._predict([original_image], [[asked.prompt]], task="vqa")[0]
        scores, rows = output.pop("answer_scores").topk(min(_BEST_ANSWERS, len(self._answers)))
        best = [(self._answers.answers[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        return {"answer": best[0][0], "score": best[0][1], "answers": best, **output}

    def caption(self, original_image: np.ndarray) -> dict[str, Any]:
        """Describe an image.

        Args:
            original_image: See ``__call__``.

        Returns:
            ``caption`` and its ``score``, the mean log probability of its words. With
            ``MODEL.GLIPV2.CAPTIONING.GROUNDED`` also ``phrases``, its noun phrases; ``phrase_spans``, their half-open
            character ranges; ``instances``, the best box of each phrase, rated without a determiner at its beginning;
            and ``words``, a dict for each word in the order of the caption: ``word``; ``span``, its half-open character
            range; ``box``, its best box, XYXY in pixels of the image, None if no box has a score above 0; and ``score``
            in [0, 1]. Without that key all four are empty.

        Raises:
            TypeError, InputError: The model has no captioning head, or the image is not as above.
        """
        if not self.cfg.MODEL.GLIPV2.CAPTIONING.ENABLED:
            raise InputError(
                "caption: expected a model that writes captions (MODEL.GLIPV2.CAPTIONING.ENABLED True), found another"
            )
        with torch.no_grad():
            output = self.model([{**self._model_input(original_image), "task": "captioning"}])[0]
        decoded = self.tokenizer.decode(output["caption_ids"].tolist())
        result = {"caption": decoded.text, "score": output["caption_score"]}
        if "token_boxes" in output:
            _cut_to_image(output["token_boxes"], original_image.shape[:2])
        return {**result, **ground_caption(decoded, output, original_image.shape[:2])}

    def _predict(
        self, images: Sequence[np.ndarray], prompts: Sequence[list[TokenizedPrompt]], **asked: Any
    ) -> list[dict[str, Any]]:
        is_resized = not self.cfg.TEST.AUG.ENABLED or "task" in asked
        inputs = [
            {**self._model_input(image, is_resized), "prompts": chunks, **asked}
            for image, chunks in zip(images, prompts, strict=True)
        ]
        with torch.no_grad():
            outputs = multi_scale(self.cfg, self.model)(inputs)
        for output in outputs:
            if "instances" in output:
                _cut_to_image(output["instances"].pred_boxes.tensor, output["instances"].image_size)
        return [
            {**output, "phrases": [phrase for prompt in chunks for phrase in prompt.phrases]}
            for output, chunks in zip(outputs, prompts, strict=True)
        ]

    def _model_input(self, image: np.ndarray, is_resized: bool = True) -> dict[str, Any]:
        check_image(image)
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        if is_resized:
            image_to_show = self.aug.get_transform(image).apply_image(image).astype("float32")
        else:
            # It is resized later, and uint8 is resized with other rounding than float.
            image_to_show = np.array(image, dtype=image.dtype if image.dtype == np.uint8 else np.float32)
        tensor = torch.as_tensor(image_to_show.transpose(2, 0, 1))  # (3, H, W)
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}

    def _prompts(
        self, names_or_caption: NamesOrCaption, phrases: Sequence[str | CharSpan] | None
    ) -> list[TokenizedPrompt]:
        if phrases is not None and not isinstance(names_or_caption, str):
            raise InputError(f"phrases: expected a caption that holds them, found the prompt {names_or_caption!r:.100}")
        if names_or_caption is None:
            return self._default_prompts()
        if isinstance(names_or_caption, str):
            names = names_in(names_or_caption) if phrases is None else []
            if not names:
                return [caption_prompt(names_or_caption, phrases, self.tokenizer)]
            names_or_caption = names
        return self._tokenize_names(names_or_caption)


def _cut_to_image(boxes: Tensor, image_size: Sequence[int]) -> None:
    """Cut boxes (..., 4) XYXY in place; the official rescaling may pass the border by nearly a pixel."""
    boxes[..., 0::2].clamp_(0, image_size[1])
    boxes[..., 1::2].clamp_(0, image_size[0])


def check_image(image: np.ndarray) -> None:
    """Check that an image is (H, W, 3), not empty, of numbers in 0..255.

    Raises:
        TypeError, InputError: It is not; the message says what was found.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected a numpy array (H, W, 3), found {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image: expected shape (H, W, 3), found {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"image: expected uint8 or floating point in 0..255, found {image.dtype}")
    if not np.isfinite(image).all():
        raise InputError("image: expected finite numbers in 0..255, found NaN or infinity")
    low, high = image.min(), image.max()
    if low < 0 or high > 255:
        raise InputError(f"image: expected numbers in 0..255, found {low:g} to {high:g}; scale or clip it")
    if 0 < high <= 1 and image.dtype != np.uint8:
        raise InputError(
            f"image: expected numbers in 0..255, found none above {high:g}; multiply an image in 0..1 by 255"
        )
