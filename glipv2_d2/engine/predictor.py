"""Detect, segment, answer and describe in images of any form, one or many."""

from __future__ import annotations

import itertools
import logging
import numbers
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from torch import Tensor

from ..checkpoint.checkpointer import build_for_results
from ..checkpoint.hub import locate_pretrained, push_pretrained
from ..checkpoint.pretrained_folder import save_pretrained
from ..detectron2_keys import check_config
from ..errors import InputError, memory_errors
from ..modeling.phrase_results import find_phrase_maps, referred_mask
from ..prompts.answers import AnswerVocabulary
from ..prompts.questions import question_to_answer
from ..prompts.user_prompts import NamesOrCaption, UserPrompts
from ..structures import CharSpan, TokenizedPrompt
from .caption_results import ground_caption
from .command_line import build_config
from .detections import Detections
from .image_inputs import ImageInput, as_bgr, in_batches, source_of
from .multi_scale import multi_scale, single_scale

# Number of answers that are returned.
_BEST_ANSWERS = 5
# Stands for the end of images or prompts.
_END = object()
_NO_MEMORY = "out of memory"


class GLIPv2Predictor(DefaultPredictor):
    """Detect in images what a prompt names; nothing is kept between two calls.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``, which may be "random" but not empty; it is not changed.

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
        self.model = build_for_results(cfg)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.aug, self._image_versions = single_scale(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self._prompts = UserPrompts.from_config(cfg)
        self.tokenizer = self._prompts.tokenizer
        vqa = cfg.MODEL.GLIPV2.VQA
        self._answers = AnswerVocabulary.from_config(cfg) if vqa.ENABLED else None
        self._grounds_questions = vqa.GROUNDED
        self._referring_thresh = cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        opts: Sequence[str] = (),
        *,
        download: bool = False,
        revision: str | None = None,
    ) -> GLIPv2Predictor:
        """Make a predictor from a folder that ``save_pretrained`` wrote; its files are checked, nothing is executed.

        Args:
            folder: Path of the folder; or that of a training's output, whose best or else newest weights are taken; or
                USER/NAME of a repository of huggingface.co that ``push_to_hub`` made.
            opts: Pairs of KEY VALUE that change its config. Without MODEL.DEVICE among them the model uses the GPU if
                there is one, otherwise the CPU.
            download: Fetch the repository; only known files, and of weights safetensors only.
            revision: Branch, tag or commit of the repository.

        Raises:
            InputError, OSError: A file is missing or damaged, or a key or a value is wrong.
        """
        config_file = locate_pretrained(folder, download=download, revision=revision)
        return cls(build_config(config_file, ["MODEL.DEVICE", "auto", *opts], for_results=True))

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> None:
        """Write model, config, the files that it needs and a page about it as a folder.

        For the options ``overwrite``, ``license_name`` and ``results`` see ``checkpoint.pretrained_folder``.
        """
        save_pretrained(self.model, self.cfg, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Send what ``save_pretrained`` writes to USER/NAME on huggingface.co; return its address.

        A repository that is made is private unless ``private=False``; for the other options see ``push_pretrained``.
        """
        return push_pretrained(self.model, self.cfg, repository, **options)

    @overload
    def __call__(
        self,
        original_image: ImageInput,
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        **options: Any,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        original_image: list[Any] | tuple[Any, ...],
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        **options: Any,
    ) -> list[Detections]: ...

    @overload
    def __call__(
        self,
        original_image: Iterator[Any],
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        **options: Any,
    ) -> Iterator[Detections]: ...

    def __call__(
        self,
        original_image: Any,
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        **options: Any,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect in one image, or in many with one prompt for all.

        Args:
            original_image: Path, address, bytes, PIL image, array or tensor, see ``as_bgr``: (H, W, 3) uint8 or float
                in 0..255 in BGR order is taken as it is. Many are a list or tuple of them, an array or tensor with four
                dimensions, or an iterator.
            names_or_caption: A sequence of names, of any length; or the same as one text, such as "apple . orange" or
                "apple, orange" (see ``listed_names``); or a caption, whose noun phrases are grounded; None: the names
                of ``DATASETS.TEST[0]``.
            phrases: Only with a caption: parts of it to ground instead of its noun phrases, each as a string that the
                caption holds or as a half-open character range.
            options: ``threshold``, ``channel_order`` and ``allow_downloads``, and for many images ``batch_size``, as in
                ``stream``.

        Returns:
            A dict (``Detections``) with ``instances``, K detections: ``pred_boxes`` (K, 4) XYXY in pixels of the image,
            ``scores`` (K,) in [0, 1], ``pred_classes`` (K,), rows of ``phrases``, and with a mask head ``pred_masks``
            (K, H, W) bool; K may be 0. ``phrases``: P strings. Of many images a list of them, and of an iterator the
            iterator of ``stream``.

        Raises:
            TypeError, InputError: The image, which is one, or the prompt, or an option is not as above.
        """
        if isinstance(original_image, (list, tuple)) or getattr(original_image, "ndim", 0) == 4:
            return list(self.stream(original_image, names_or_caption, phrases, **options))
        if isinstance(original_image, Iterator) and not hasattr(original_image, "read"):  # A file has lines.
            return self.stream(original_image, names_or_caption, phrases, **options)
        return self._detect_in_one(original_image, self._prompts(names_or_caption, phrases), **options)

    def predict_batch(
        self, original_images: Sequence[ImageInput], names_or_captions: Sequence[NamesOrCaption], **options: Any
    ) -> list[Detections]:
        """Detect in several images, each with its own prompt; the results are those of single calls.

        The options and images that cannot be read are as in ``stream``.

        Raises:
            InputError: There is not one prompt for every image.
        """
        if isinstance(names_or_captions, str) or len(original_images) != len(names_or_captions):
            raise InputError(
                f"names_or_captions: expected a sequence with one prompt for each of {len(original_images)} images, "
                f"found {names_or_captions!r:.100}"
            )
        return list(self.stream(original_images, prompts=names_or_captions, **options))

    def stream(
        self,
        images: Iterable[ImageInput],
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        *,
        prompts: Iterable[NamesOrCaption] | None = None,
        batch_size: int = 1,
        threshold: float | None = None,
        channel_order: str = "BGR",
        allow_downloads: bool = False,
    ) -> Iterator[Detections]:
        """Detect in one image after the other; of the images at most ``batch_size`` are in memory.

        An image that cannot be read, or needs too much memory, does not end the stream: its result is empty and holds
        ``error``, and a warning names it. An error of the iterator itself comes after the results of all images before.

        Args:
            images: Images in any form, see ``__call__``.
            names_or_caption: The prompt for all, and ``phrases``, see ``__call__``.
            prompts: A prompt for each image, in place of these.
            batch_size: Images in one pass through the model; more take more memory, and less time on a GPU.
            threshold: Lowest score that is kept, in [0, 1]; None: those that the config keeps.
            channel_order: "BGR" or "RGB", of arrays and tensors.
            allow_downloads: Fetch images at http and https addresses.

        Yields:
            The result of each image, as of ``__call__``, in their order.

        Raises:
            TypeError, InputError: An option or a prompt is not as above; when it is reached, one of ``prompts``, or the
                end of ``prompts`` before or after that of the images.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: expected a whole number from 1, found {batch_size!r:.100}")
        _check_threshold(threshold)
        reading = {"channel_order": channel_order, "allow_downloads": allow_downloads}
        pairs: Iterator[tuple[Any, list[TokenizedPrompt]]]
        if prompts is None:
            shared = self._prompts(names_or_caption, phrases)
            pairs = ((image, shared) for image in images)
        elif names_or_caption is not None or phrases is not None:
            raise InputError("prompts: expected no other prompt beside them, found one")
        else:
            pairs = _pairs(images, map(self._prompts, prompts))
        return self._stream(pairs, batch_size, threshold, reading)

    def phrase_maps(
        self,
        original_image: ImageInput,
        names_or_caption: NamesOrCaption = None,
        phrases: Sequence[str | CharSpan] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Say how well every location of an image fits each phrase, before and after fusion.

        Arguments are as of ``__call__``, errors as of ``refer``. Returns ``phrases`` and, see ``find_phrase_maps``,
        ``after`` and with a contrastive head ``before``; ``heat_maps.draw_phrase_maps`` draws them.
        """
        image, prompts = as_bgr(original_image, **options), self._prompts(names_or_caption, phrases)
        found = find_phrase_maps(self.model, {**self._model_input(image), "prompts": prompts})
        return {"phrases": _phrases_of(prompts), **found}

    def refer(self, original_image: ImageInput, phrase: str, **options: Any) -> dict[str, Any]:
        """Segment what a phrase refers to.

        Args:
            original_image: See ``__call__``.
            phrase: Names one thing as a whole, such as "the dog on the left".
            options: ``channel_order`` and ``allow_downloads``, see ``stream``.

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
        prompts = self._prompts(phrase, [(0, len(phrase))])
        output = self._predict([as_bgr(original_image, **options)], [prompts])[0]
        return {"mask": referred_mask(output["instances"], self._referring_thresh).cpu().numpy(), **output}

    def answer(self, original_image: ImageInput, question: str, **options: Any) -> dict[str, Any]:
        """Answer a question about an image.

        Args:
            original_image: See ``__call__``.
            question: A question such as "how many dogs are there?"; the part past the token limit is cut off, with a
                warning.
            options: ``channel_order`` and ``allow_downloads``, see ``stream``.

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
        image = as_bgr(original_image, **options)
        output = self._predict([image], [[asked.prompt]], task="vqa")[0]
        scores, rows = output.pop("answer_scores").cpu().topk(min(_BEST_ANSWERS, len(self._answers)))
        best = [(self._answers.answers[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        return {"answer": best[0][0], "score": best[0][1], "answers": best, **output}

    def caption(self, original_image: ImageInput, **options: Any) -> dict[str, Any]:
        """Describe an image.

        Args:
            original_image: See ``__call__``.
            options: ``channel_order`` and ``allow_downloads``, see ``stream``.

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
        image = as_bgr(original_image, **options)
        with torch.no_grad():
            output = self.model([{**self._model_input(image), "task": "captioning"}])[0]
        decoded = self.tokenizer.decode(output["caption_ids"].tolist())
        result = {"caption": decoded.text, "score": output["caption_score"]}
        if "token_boxes" in output:
            _cut_to_image(output["token_boxes"], image.shape[:2])
        return {**result, **ground_caption(decoded, output, image.shape[:2])}

    def _detect_in_one(
        self, image: ImageInput, prompts: list[TokenizedPrompt], threshold: float | None = None, **reading: Any
    ) -> Detections:
        _check_threshold(threshold)
        result = Detections(self._predict([as_bgr(image, **reading)], [prompts])[0], source_of(image))
        return result if threshold is None else result.above(threshold)

    def _stream(
        self,
        pairs: Iterable[tuple[Any, list[TokenizedPrompt]]],
        batch_size: int,
        threshold: float | None,
        reading: dict[str, Any],
    ) -> Iterator[Detections]:
        for batch in in_batches(enumerate(pairs), batch_size):
            read = [_read_or_say(image, number, reading) for number, (image, _) in batch]
            good = [
                (image, pair[1]) for image, (_, pair) in zip(read, batch, strict=True) if not isinstance(image, str)
            ]
            outputs = iter(self._predict_or_say([image for image, _ in good], [prompts for _, prompts in good]))
            for found, (number, (image, prompts)) in zip(read, batch, strict=True):
                output = found if isinstance(found, str) else next(outputs)
                if isinstance(output, dict):
                    result = Detections(output, source_of(image))
                    yield result if threshold is None else result.above(threshold)
                    continue
                error = f"images[{number}]: {output}"
                logging.getLogger(__name__).warning("left out: %s", error)
                yield Detections.failed(error, _phrases_of(prompts), source_of(image))

    def _predict_or_say(
        self, images: Sequence[np.ndarray], prompts: Sequence[list[TokenizedPrompt]]
    ) -> list[dict[str, Any] | str]:
        """Return for each image its output, or that it needs too much memory even alone."""
        try:
            with memory_errors():
                return [*self._predict(images, prompts)] if images else []
        except MemoryError:
            if len(images) == 1:
                return [_NO_MEMORY]
        return [one for pair in zip(images, prompts, strict=True) for one in self._predict_or_say([pair[0]], [pair[1]])]

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
        return [{**output, "phrases": _phrases_of(chunks)} for output, chunks in zip(outputs, prompts, strict=True)]

    def _model_input(self, image: np.ndarray, is_resized: bool = True) -> dict[str, Any]:
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        shown = self.aug.get_transform(image).apply_image(image) if is_resized else image
        # What is resized later stays uint8, which is resized with other rounding than float.
        dtype = np.uint8 if image.dtype == np.uint8 and not is_resized else np.float32
        tensor = torch.as_tensor(np.array(shown, dtype).transpose(2, 0, 1))  # (3, H, W)
        versions = self._image_versions(image, tensor.shape[1:]) if is_resized else {}
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1], **versions}


def _cut_to_image(boxes: Tensor, image_size: Sequence[int]) -> None:
    """Cut boxes (..., 4) XYXY in place; the official rescaling may pass the border by nearly a pixel."""
    boxes[..., 0::2].clamp_(0, image_size[1])
    boxes[..., 1::2].clamp_(0, image_size[0])


def _phrases_of(prompts: Sequence[TokenizedPrompt]) -> list[str]:
    return [phrase for prompt in prompts for phrase in prompt.phrases]


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not (isinstance(threshold, numbers.Real) and 0 <= threshold <= 1):
        raise InputError(f"threshold: expected a number from 0 to 1, found {threshold!r:.100}")


def _read_or_say(image: ImageInput, number: int, reading: dict[str, Any]) -> np.ndarray | str:
    """Return an image of a stream, or what is wrong with it."""
    try:
        return as_bgr(image, **reading)
    except (InputError, TypeError) as error:
        return str(error)
    except MemoryError:
        return _NO_MEMORY


def _pairs(images: Iterable[Any], prompts: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each image with its prompt."""
    for image, prompt in itertools.zip_longest(images, prompts, fillvalue=_END):
        if image is _END or prompt is _END:
            found = "more prompts" if image is _END else "more images"
            raise InputError(f"prompts: expected one for each image, found {found}")
        yield image, prompt
