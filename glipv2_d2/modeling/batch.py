"""Values between trunk and heads: shapes, image-prompt pairs, a training batch, and its fused features."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..device_copies import instances_to_device, to_device
from ..errors import InputError
from ..layers.true_places import true_places
from ..structures import KEPT_NAME, GroundingPredictions, LanguageFeatures, TokenBatch, TokenizedPrompt

# Parts of the model below its heads: a loss on fused features is worth computing if one of them trains.
TRUNK_PARTS = ("backbone", "text_encoder", "prompt_tuner", "fusion_tower")


class TrunkShapes(NamedTuple):
    """Sizes of the trunk's output, known before anything runs.

    Attributes:
        levels: Channels and stride of the L levels of the pyramid.
        tower_channels: C of the levels that leave the tower.
        language_dim: D of the text, 0 for a trunk without text.
        vocab_size: Number of token ids that the text encoder knows, 0 for a trunk without text.
    """

    levels: list[ShapeSpec]
    tower_channels: int
    language_dim: int = 0
    vocab_size: int = 0


class Pairs(NamedTuple):
    """M pairs of an image and one of its prompts that run through the tower together.

    Attributes:
        rows: For each pair the index of its image in the batch.
        ranks: For each pair the index of its prompt in the list of its image.
        prompts: For each pair the prompt itself.
    """

    rows: list[int]
    ranks: list[int]
    prompts: list[TokenizedPrompt]

    @classmethod
    def of_images(cls, prompts: Sequence[Sequence[TokenizedPrompt]]) -> Pairs:
        """Pair each of N images with all of its prompts, in their order."""
        pairs = [(row, rank) for row, of_image in enumerate(prompts) for rank in range(len(of_image))]
        return cls.choose(prompts, pairs)

    @classmethod
    def choose(cls, prompts: Sequence[Sequence[TokenizedPrompt]], pairs: Sequence[tuple[int, int]]) -> Pairs:
        """Take the pairs of an image and a prompt that are given by their indices, (row, rank)."""
        rows, ranks = [row for row, _ in pairs], [rank for _, rank in pairs]
        return cls(rows, ranks, [prompts[row][rank] for row, rank in pairs])

    def split(self, size: int) -> list[Pairs]:
        """Cut into parts of at most ``size`` pairs, in their order."""
        cuts = [slice(begin, begin + size) for begin in range(0, len(self.rows), size)]
        return [Pairs(self.rows[cut], self.ranks[cut], self.prompts[cut]) for cut in cuts]

    def select(self, levels: list[Tensor]) -> list[Tensor]:
        """Select for each pair the levels of its image: L tensors (N, C, Hl, Wl) to L tensors (M, C, Hl, Wl)."""
        return take_rows(levels, self.rows)


def take_rows(tensors: list[Tensor], rows: list[int]) -> list[Tensor]:
    """Take the same rows of tensors on one device, without a copy where these are all, in their order, or only one."""
    count = len(tensors[0])
    if rows == list(range(count)):
        return tensors
    if count == 1 and not torch.is_grad_enabled():
        return [tensor.expand(len(rows), *tensor.shape[1:]) for tensor in tensors]
    (places,) = to_device([torch.tensor(rows)], tensors[0].device)
    return [tensor[places] for tensor in tensors]


class InputImages(ImageList):
    """N images, normalized and padded to one size.

    Attributes:
        fine: (N, 3, H', W'), finer versions of them, normalized and padded; None where there are none.
    """

    fine: Tensor | None = None


class TrainBatch(NamedTuple):
    """N images with M >= N prompts in training, all of one task, on the device of the model.

    Attributes:
        task: Name of the task.
        images: The N images, normalized and padded.
        pairs: The M pairs of an image and a prompt.
        tokens: (M, T), the prompts as token ids.
        instances: For each pair the boxes of its prompt; None where the batch has none (plain questions and captions).
        answer_scores: (M, A) in [0, 1], questions only.
        on_cpu: ``instances`` as they were on the CPU: who reads them there does not wait for the device; None where
            ``instances`` are there.
        kept: (M, T) bool, the tokens of names that nobody has annotated, see ``KEPT_NAME``; None: there are none.
    """

    task: str
    images: ImageList
    pairs: Pairs
    tokens: TokenBatch
    instances: list[Instances] | None = None
    answer_scores: Tensor | None = None
    on_cpu: list[Instances] | None = None
    kept: Tensor | None = None

    @property
    def prompts(self) -> list[TokenizedPrompt]:
        """The M prompts."""
        return self.pairs.prompts

    @property
    def annotated_tokens(self) -> Tensor:
        """(M, T) bool, the tokens whose targets the boxes decide: real ones, without those of ``kept``."""
        return self.tokens.mask if self.kept is None else self.tokens.mask & ~self.kept

    @classmethod
    def from_inputs(
        cls, inputs: Sequence[Mapping[str, Any]], task: str, images: ImageList, needs_boxes: bool
    ) -> TrainBatch:
        """Read N model inputs.

        Args:
            inputs: Model inputs, see ``structures``.
            task: The task of all of them.
            images: Their images.
            needs_boxes: Every input must have ``instances``; otherwise all of them or none.

        Raises:
            InputError: Prompts or boxes are missing.
        """
        prompts = [one.get("prompts") or [] for one in inputs]
        if not all(prompts):
            raise InputError(
                "model input: prompts: expected some in training, found none; use glipv2_d2.data's loaders"
            )
        num_with_boxes = sum("instances" in one for one in inputs)
        if num_with_boxes not in ({len(inputs)} if needs_boxes else {0, len(inputs)}):
            raise InputError(
                f"model input: instances: expected them in each of a batch or, for questions and captions, in none, "
                f"found {num_with_boxes} of {len(inputs)}"
            )
        device, pairs = images.tensor.device, Pairs.of_images(prompts)
        on_cpu = instances = None
        if num_with_boxes:
            on_cpu = [
                _boxes_of_prompt(inputs[row]["instances"], rank, len(prompts[row]))
                for row, rank in zip(pairs.rows, pairs.ranks, strict=True)
            ]
            instances = instances_to_device(on_cpu, device)
        scores = [one["answer_scores"] for one in inputs if "answer_scores" in one]
        answer_scores = to_device([torch.cat(scores)], device)[0] if scores else None
        tokens = TokenBatch.from_prompts(pairs.prompts, device)
        kept = _kept_tokens(pairs.prompts, tokens.mask.shape[1])
        if kept is not None:
            (kept,) = to_device([kept], device)
        return cls(task, images, pairs, tokens, instances, answer_scores, on_cpu, kept)


def _kept_tokens(prompts: Sequence[TokenizedPrompt], num_tokens: int) -> Tensor | None:
    """Mark the tokens of the names of ``KEPT_NAME`` in M prompts, (M, T) bool; None without such names."""
    rows = [prompt.category_ids == KEPT_NAME for prompt in prompts]
    if not any(row.any() for row in rows):
        return None
    kept = torch.zeros(len(prompts), num_tokens, dtype=torch.bool)
    for tokens, prompt, row in zip(kept, prompts, rows, strict=True):
        tokens[: len(prompt)] = prompt.phrase_token_map[row].any(dim=0)
    return kept


def _boxes_of_prompt(instances: Instances, rank: int, num_prompts: int) -> Instances:
    """Return the boxes of one of the prompts of an input."""
    if num_prompts == 1:
        return instances
    if not instances.has("gt_prompts"):
        raise InputError(
            f"model input: instances: expected gt_prompts, the prompt of each box, beside {num_prompts} prompts, "
            "found none"
        )
    return instances[instances.gt_prompts == rank]


class Positives(NamedTuple):
    """The anchors of N images that have a box.

    Attributes:
        images: (P,) int64, in ascending order.
        anchors: (P,) int64, in ascending order within an image.
        counts: How many each image has.
    """

    images: Tensor
    anchors: Tensor
    counts: list[int]

    @classmethod
    def find(cls, mask: Tensor) -> Positives:
        """Find the True entries of a mask, (N, R); on a device the CPU waits for their numbers, and only here."""
        counts = mask.sum(dim=1).tolist()
        return cls(*true_places(mask, sum(counts)), counts)


class AnchorTargets(NamedTuple):
    """Targets of the anchors of N images.

    Attributes:
        matched_idxs: (N, R) int64, index of the matched box of the image, -1 for a negative.
        gt_boxes: (N, R, 4) the matched boxes, 0 for a negative.
        token_targets: (N, R, T) bool, the tokens that spell the phrase of the matched box.
        positives: The anchors that are no negatives, once they have been found.
    """

    matched_idxs: Tensor
    gt_boxes: Tensor
    token_targets: Tensor
    positives: Positives | None = None

    def find_positives(self) -> Positives:
        """Return the anchors that are no negatives."""
        return Positives.find(self.matched_idxs >= 0) if self.positives is None else self.positives


class Detector(Protocol):
    """The methods of the head that predicts boxes which ``Fused`` calls; see ``AnchorHead``."""

    def label_anchors(
        self, anchors: list[Boxes], instances: list[Instances], prompts: list[TokenizedPrompt], num_tokens: int
    ) -> AnchorTargets: ...

    def proposals(self, fused: Fused, batch: TrainBatch) -> list[Boxes]: ...


class Fused:
    """Image and text of M pairs after the tower; predictions, anchors and targets are made once, on first use.

    Args:
        features: L levels (M, C, Hl, Wl) before fusion; (N, C, Hl, Wl) where the image does not read the text.
        language: The prompts before fusion.
        levels: L levels (M, C', Hl, Wl) after fusion; [] where nobody needs them.
        text: (M, T, D), the input of the detector: fused tokens, or those of the encoder for a tower without fusion.
        hidden: (M, T, D), the text as it leaves the tower.
        detector: Labels anchors and proposes boxes.
        predict: Maps ``levels`` and ``text`` to the predictions of the detector.
        make_anchors: Maps levels to L sets of anchors.
    """

    def __init__(
        self,
        features: list[Tensor],
        language: LanguageFeatures,
        levels: list[Tensor],
        text: Tensor,
        hidden: Tensor,
        detector: Detector,
        predict: Callable[[list[Tensor], Tensor], GroundingPredictions],
        make_anchors: Callable[[list[Tensor]], list[Boxes]],
    ) -> None:
        self.features = features
        self.language = language
        self.levels = levels
        self.text = text
        self.hidden = hidden
        self._detector = detector
        self._predict = predict
        self._make_anchors = make_anchors
        self._targets: AnchorTargets | None = None

    @functools.cached_property
    def predictions(self) -> GroundingPredictions:
        """Predictions of the detector for every anchor."""
        return self._predict(self.levels, self.text)

    @functools.cached_property
    def anchors(self) -> list[Boxes]:
        """L sets of anchors, the same for all images."""
        return self._make_anchors(self.features)

    def targets(self, batch: TrainBatch) -> AnchorTargets:
        """Label the anchors with the boxes of the batch that was fused."""
        if self._targets is None:
            num_tokens = batch.tokens.mask.shape[1]
            self._targets = self._detector.label_anchors(self.anchors, boxes_of(batch), batch.prompts, num_tokens)
        return self._targets

    def proposals(self, batch: TrainBatch) -> list[Boxes]:
        """Choose M sets of predicted boxes that train the mask head, best first."""
        return self._detector.proposals(self, batch)


def boxes_on_cpu(batch: TrainBatch) -> list[Instances]:
    """Return the boxes of the M prompts of a batch as they were on the CPU, see ``boxes_of``."""
    return [one.to("cpu") for one in boxes_of(batch)] if batch.on_cpu is None else batch.on_cpu


def boxes_of(batch: TrainBatch) -> list[Instances]:
    """Return the boxes of the M prompts of a batch.

    Raises:
        ValueError: The batch has none; a head that reads them has to want batches with boxes only.
    """
    if batch.instances is None:
        raise ValueError(f"a batch of the task {batch.task!r}: expected instances, found none")
    return batch.instances


class TrainingHead(nn.Module, ABC):
    """A head of the model. The name under which the model holds it is the prefix of its weights."""

    # Parts of the trunk: the loss is worth computing if one of them, or the head itself, trains.
    needs: ClassVar[tuple[str, ...]] = TRUNK_PARTS
    # The loss is computed from boxes.
    reads_boxes: ClassVar[bool] = False
    # Buffers that ``observe`` fills.
    noted: ClassVar[tuple[str, ...]] = ()

    def wants(self, batch: TrainBatch) -> bool:
        """Tell whether the batch has the inputs of the loss."""
        return batch.instances is not None or not self.reads_boxes

    def observe(self, batch: TrainBatch) -> None:
        """Note what a batch that the head wants teaches other parts; also called where the head has no loss."""
        return None

    @abstractmethod
    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Return weighted scalar losses by name."""
