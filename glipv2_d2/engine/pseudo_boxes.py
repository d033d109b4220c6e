"""Pseudo boxes: a teacher finds the noun phrases of a text in its image, which becomes a grounding record."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from ..data.datasets.caption_files import CaptionSample, SkippedCaption
from ..data.datasets.question_files import QuestionSample
from ..data.image_reading import UnreadableImageError, read_image
from ..prompts.builder import prompt_from_caption
from ..prompts.phrase_finders import PhraseFinder
from ..structures import CharSpan, TokenizedPrompt
from ..tensor_files import file_sha256
from .predictor import GLIPv2Predictor
from .shard_writer import ShardWriter

# The reason for skipping an entry that a user may want to know of before a run.
MISSING_IMAGE = "image file that is missing"

# Digits of the checksum of the weights in the teacher's id.
_ID_LENGTH = 12
# In pixels; the readers of grounding data leave out boxes that are not wider and higher.
_MIN_SIDE = 1.0
# First bytes of the image formats that tar shards hold. WebP differs: the length of the file stands between its marks.
_IMAGE_STARTS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}

Progress = Callable[[], Any]
Sample = CaptionSample | QuestionSample


class CaptionPhrases(NamedTuple):
    """A caption as the teacher reads it.

    Attributes:
        prompt: Its P phrases are the noun phrases, each occurrence one of its own.
        spans: For each phrase its half-open character ranges of the caption.
        num_past_limit: Phrases without tokens since the caption passes the token limit.
        num_without_tokens: Phrases without tokens in a caption that fits.
    """

    prompt: TokenizedPrompt
    spans: list[list[CharSpan]]
    num_past_limit: int
    num_without_tokens: int


class PseudoBoxTeacher(GLIPv2Predictor):
    """A predictor that finds the noun phrases of captions in their images.

    Args:
        cfg: Config with ``MODEL.WEIGHTS``.
        finder: Finds the noun phrases.
        score_thresh: A box needs at least this score, in [0, 1].

    Source: the self-training of GLIP, Sec. 3.3, and GLIPv2, Sec. 4; noun phrases as in the official demo.
    """

    def __init__(self, cfg: CfgNode, finder: PhraseFinder, score_thresh: float) -> None:
        super().__init__(cfg)
        self.finder = finder
        self.score_thresh = score_thresh

    def read_caption(self, caption: str) -> CaptionPhrases | None:
        """Find the noun phrases of a caption and tokenize it; None if it has none."""
        return self.read_phrases(caption, self.finder.find(caption))

    def read_phrases(self, caption: str, found: Sequence[tuple[str, Sequence[CharSpan]]]) -> CaptionPhrases | None:
        """Tokenize a caption whose phrases are known, with their half-open character ranges; None if it has none."""
        if not found:
            return None
        names, spans = zip(*found, strict=True)
        prompt = self.tokenizer(prompt_from_caption(caption, spans, names))
        num_lost = int((~prompt.phrase_token_map.any(dim=1)).sum())
        is_cut = len(prompt) >= self.tokenizer.max_tokens
        return CaptionPhrases(prompt, list(spans), num_lost * is_cut, num_lost * (not is_cut))

    def find_regions(
        self, images: Sequence[np.ndarray], captions: Sequence[CaptionPhrases]
    ) -> list[list[dict[str, Any]]]:
        """Return for each image the regions of its record, the best first.

        Args:
            images: (H, W, 3) each, uint8 or float in 0..255, channels in BGR order.
            captions: One for each image.
        """
        outputs = self._predict(images, [[caption.prompt] for caption in captions])
        return [
            regions_of(output["instances"], caption, self.score_thresh)
            for output, caption in zip(outputs, captions, strict=True)
        ]


class PseudoBoxTask(NamedTuple):
    """How a sample becomes a caption for the teacher, and its regions a record.

    Attributes:
        text: Name of a sample in messages.
        read: Makes a caption of a sample; None if it has no noun phrase.
        finish: Turns the regions of that caption into those of the record.
        content: Returns the entries of the record beyond those of its image, from the sample and its regions.
    """

    text: str
    read: Callable[[PseudoBoxTeacher, Any], CaptionPhrases | None]
    finish: Callable[[Any, list[dict[str, Any]]], list[dict[str, Any]]]
    content: Callable[[Any, list[dict[str, Any]]], dict[str, Any]]


CAPTIONS = PseudoBoxTask(
    "caption",
    read=lambda teacher, sample: teacher.read_caption(sample.caption),
    finish=lambda sample, regions: regions,
    content=lambda sample, regions: {"grounding": {"caption": sample.caption, "regions": regions}},
)


@dataclass
class PseudoBoxCounts:
    """Counts over the samples of one shard, or of several.

    Attributes:
        samples: Captions or questions that were read, including those that were skipped.
        images: Images that the teacher has seen.
        images_without_box: Images for which no box passed the threshold; they are not written.
        phrases_found: Noun phrases of the texts of these images.
        phrases_kept: Phrases with a box.
        phrases_past_token_limit: Phrases that the teacher could not read since the text is too long.
        phrases_without_tokens: Phrases for which the tokenizer has no token.
        boxes: Boxes that were written.
        answer_boxes: Boxes that belong to the answer of a question.
        seconds: Time spent, summed over the processes.
        skipped: For each reason the names of the entries that were left out.
    """

    samples: int = 0
    images: int = 0
    images_without_box: int = 0
    phrases_found: int = 0
    phrases_kept: int = 0
    phrases_past_token_limit: int = 0
    phrases_without_tokens: int = 0
    boxes: int = 0
    answer_boxes: int = 0
    seconds: float = 0.0
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        """Count an entry that is left out."""
        self.skipped.setdefault(reason, []).append(name)


@dataclass
class PseudoBoxLabeller:
    """Turns the samples of a shard into records.

    Attributes:
        teacher: Finds the phrases.
        teacher_id: Name of the teacher in every record.
        task: How samples are read and written.
        image_root: Folder of the images that are files of their own.
        batch_size: Number of images that the teacher gets together.
        num_threads: Threads that read images ahead; 0: none.
    """

    teacher: PseudoBoxTeacher
    teacher_id: str
    task: PseudoBoxTask = CAPTIONS
    _: KW_ONLY
    image_root: str
    batch_size: int
    num_threads: int

    def label_shard(
        self,
        samples: Iterable[Sample | SkippedCaption],
        writer: ShardWriter,
        progress: Progress,
    ) -> PseudoBoxCounts:
        """Write a record for every image with a box, in the order of the samples; return the counts of all samples.

        Args:
            samples: Samples of the shard; at most two batches of them are in memory.
            writer: Writes the shard.
            progress: Called once for every entry.
        """
        start = time.perf_counter()
        counts = PseudoBoxCounts()
        batch: list[tuple[Sample, CaptionPhrases, bytes, np.ndarray]] = []
        for sample, caption, image in self._with_images(self._with_phrases(samples, counts, progress)):
            if isinstance(image, SkippedCaption):
                counts.skip(image.reason, image.name)
                progress()
                continue
            content, pixels = image
            if writer.holds_images and image_suffix(content) is None:
                counts.skip("image of a format that tar shards do not hold", sample.name)
                progress()
                continue
            batch.append((sample, caption, content, pixels))
            if len(batch) == self.batch_size:
                self._label_batch(batch, writer, counts, progress)
                batch = []
        if batch:
            self._label_batch(batch, writer, counts, progress)
        counts.seconds = round(time.perf_counter() - start, 3)
        return counts

    def _with_phrases(
        self, samples: Iterable[Sample | SkippedCaption], counts: PseudoBoxCounts, progress: Progress
    ) -> Iterator[tuple[Sample, CaptionPhrases]]:
        """Yield the samples that have a noun phrase."""
        for sample in samples:
            counts.samples += 1
            if isinstance(sample, SkippedCaption):
                counts.skip(sample.reason, sample.name)
                progress()
                continue
            caption = self.task.read(self.teacher, sample)
            if caption is None:
                counts.skip(f"{self.task.text} without a noun phrase", sample.name)
                progress()
                continue
            yield sample, caption

    def _with_images(
        self, samples: Iterable[tuple[Sample, CaptionPhrases]]
    ) -> Iterator[tuple[Sample, CaptionPhrases, tuple[bytes, np.ndarray] | SkippedCaption]]:
        """Yield samples with their images; threads read at most a batch ahead."""
        if self.num_threads == 0:
            for sample, caption in samples:
                yield sample, caption, load_image(sample, self.image_root)
            return
        with ThreadPoolExecutor(self.num_threads) as pool:
            ahead: deque = deque()
            for sample, caption in samples:
                ahead.append((sample, caption, pool.submit(load_image, sample, self.image_root)))
                if len(ahead) > self.batch_size:
                    first, its_caption, image = ahead.popleft()
                    yield first, its_caption, image.result()
            for sample, caption, image in ahead:
                yield sample, caption, image.result()

    def _label_batch(
        self,
        batch: Sequence[tuple[Sample, CaptionPhrases, bytes, np.ndarray]],
        writer: ShardWriter,
        counts: PseudoBoxCounts,
        progress: Progress,
    ) -> None:
        _, captions, _, images = zip(*batch, strict=True)
        found = self.teacher.find_regions(images, captions)
        for (sample, caption, content, pixels), regions in zip(batch, found, strict=True):
            counts.images += 1
            counts.images_without_box += not regions
            counts.phrases_found += len(caption.spans)
            counts.phrases_kept += len({str(region["tokens_positive"]) for region in regions})
            counts.phrases_past_token_limit += caption.num_past_limit
            counts.phrases_without_tokens += caption.num_without_tokens
            regions = self.task.finish(sample, regions)
            counts.boxes += len(regions)
            counts.answer_boxes += sum("answer_box" in region for region in regions)
            if regions:
                record = {
                    "filename": sample.file_name,
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                    **self.task.content(sample, regions),
                    "teacher": self.teacher_id,
                }
                writer.write(record, sample.key, content, image_suffix(content) or "")
            progress()


def regions_of(instances: Instances, caption: CaptionPhrases, score_thresh: float) -> list[dict[str, Any]]:
    """Write K detections as regions of a grounding record.

    Args:
        instances: ``pred_boxes`` (K, 4) XYXY in pixels, ``scores`` (K,), ``pred_classes`` (K,), rows of the phrases.
        caption: The caption whose phrases were detected.
        score_thresh: Detections with a lower score, or with NaN, are left out.

    Returns:
        In the order of the detections ``bbox`` (XYXY in pixels, inside the image, rounded to hundredths), ``phrase``,
        ``tokens_positive`` and ``score``. A box that is at most a pixel wide or high inside the image is left out.
    """
    instances = instances.to("cpu")
    height, width = instances.image_size
    regions = []
    rows, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    for row, score, box in zip(rows, scores, instances.pred_boxes.tensor.tolist(), strict=True):
        left, top, right, bottom = (
            round(min(max(edge, 0.0), float(limit)), 2)
            for edge, limit in zip(box, (width, height, width, height), strict=True)
        )
        if score >= score_thresh and right - left > _MIN_SIDE and bottom - top > _MIN_SIDE:
            regions.append(
                {
                    "bbox": [left, top, right, bottom],
                    "phrase": caption.prompt.phrases[row],
                    "tokens_positive": [list(span) for span in caption.spans[row]],
                    "score": round(score, 4),
                }
            )
    return regions


def load_image(sample: Sample, image_root: str) -> tuple[bytes, np.ndarray] | SkippedCaption:
    """Read the image of a sample.

    Returns:
        The encoded image and its pixels, (H, W, 3) uint8 in BGR order, upright; or the reason why it cannot be used.
    """
    content = sample.image
    if content is None:
        try:
            content = Path(image_root, sample.file_name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return SkippedCaption(sample.name, MISSING_IMAGE)
        except (OSError, ValueError):
            return SkippedCaption(sample.name, "image file that cannot be opened")
    try:
        return content, read_image({"file_name": sample.file_name, "image_bytes": content}, "BGR")
    except UnreadableImageError:
        return SkippedCaption(sample.name, "image that is broken")


def image_suffix(content: bytes) -> str | None:
    """Return the suffix of an encoded image of a format that tar shards hold: jpg, png or webp, else None."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in _IMAGE_STARTS.items() if content.startswith(start)), None)


def teacher_id(config_file: str, weights: str) -> str:
    """Name a teacher by its config and the checksum of its weights, as ``glipv2_swin_t-0123456789ab``.

    Args:
        config_file: Config of the teacher; only the name of the file counts.
        weights: Path of a file, as in ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: There are no such weights.
    """
    local_path = PathManager.get_local_path(weights)
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"--weights: expected the weights of a teacher, found no file {weights}")
    return f"{Path(config_file).stem}-{file_sha256(local_path)[:_ID_LENGTH]}"
