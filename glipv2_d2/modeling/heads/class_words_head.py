"""The head that names regions by the classes of a frozen image classifier, and teaches the detector its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...device_copies import to_device
from ...distributed import max_over_ranks, mean_over_ranks
from ...errors import InputError
from ...prompts.builder import prompt_from_caption
from ...prompts.tokenizer import PromptTokenizer
from ...structures import TokenBatch, TokenizedPrompt
from ...tensor_files import NO_WEIGHTS
from ..backbone.timm import load_timm_weights
from ..batch import Fused, TrainBatch, TrainingHead, TrunkShapes, boxes_of, boxes_on_cpu, take_rows
from ..class_evidence import box_cell_shares, centred, kept_probabilities, name_ratios
from .region_word_packing import take_regions

# Places of the table of names that were trained on. A name that was not takes one of theirs with a probability of the
# share of places in use: a thousand names use 2 % of them.
_TAUGHT_PLACES = 2**16
# Class texts that are encoded together.
_TEXTS_AT_ONCE = 64
_KEY = "MODEL.GLIPV2.CLASS_WORDS"
# Name in the weights of what the text encoder says of the classes.
CLASS_VECTORS = "class_words_head.class_vectors"


class ClassCells(NamedTuple):
    """What the classifier says of each cell of N images.

    Attributes:
        logits: (N, height * width, K).
        height, width: Cells from top to bottom and from left to right.
        stride: Side of a cell in pixels of the network's input.
    """

    logits: Tensor
    height: int
    width: int
    stride: float


class ClassWordsHead(TrainingHead):
    """Name regions by the words of an image classifier's classes.

    The classifier is frozen and reads whole images: its last layer is applied to every cell of its last map, and the
    logits of a box are their mean over the box. The classes have names, so their probabilities are a sentence about the
    box that any other name can be compared with, by the vectors of the text encoder: see ``class_evidence``.

    It is used twice. In training a layer learns to say the same classes of features before fusion, at positive anchors:
    ``loss_class_words``. At test time the evidence for a name is added to the logits of the name's tokens, with one
    weight for names that training has seen with a box, and another for all others, which the alignment knows little of.

    Args:
        classifier: A timm model with ``forward_features`` and ``get_classifier``, stride 32.
        texts: A prompt for each class, whose tokens are what is known of it in words.
        channels: C of the levels before fusion.
        language_dim: D.
        pixel_shift, pixel_scale: Per channel: the classifier's input is the network's times scale plus shift.
        flip_channels: The classifier has the channels in the other order.
        image_scale: Side of the classifier's image over that of the network's.
        temperature, kept: Shape the class probabilities, see ``kept_probabilities``.
        word_temperature: See ``name_ratios``.
        max_boxes: Boxes of an image and a prompt that are given evidence.
        base_image_scale: ``image_scale`` of the base that answers for other names, see ``ByName``; None: the same.
        weight: Factor of the evidence for names that training has not seen.
        taught_weight: Factor of the evidence for all others.
        share: Part of ``taught_weight`` that counts, 0 to 1; for a base that answers for other names all of it does.
        loss_weight: Factor of ``loss_class_words``.
        starts_random: The classifier has random weights, so that a file has to fill it.
        is_filled_later: A file fills the model once it is built. It holds what the texts say, or they are read then;
            reading them takes longer than all else.

    Source: evidence of classes by their words: ConSE (arXiv 1312.5650); of a frozen model's regions, with two weights:
    F-VLM (arXiv 2209.15639). The paper has no such head.
    """

    needs: ClassVar[tuple[str, ...]] = ("backbone",)
    reads_boxes: ClassVar[bool] = True
    noted: ClassVar[tuple[str, ...]] = ("taught",)
    classifier: Any
    class_vectors: Tensor
    mean_vector: Tensor
    taught: Tensor
    pixel_scale: Tensor
    pixel_shift: Tensor

    @configurable
    def __init__(
        self,
        *,
        classifier: nn.Module,
        texts: Sequence[TokenizedPrompt],
        channels: int,
        language_dim: int,
        pixel_scale: Sequence[float] = (1.0,),
        pixel_shift: Sequence[float] = (0.0,),
        flip_channels: bool = False,
        image_scale: float = 1.0,
        temperature: float = 1.5,
        kept: int = 30,
        word_temperature: float = 0.06,
        max_boxes: int = 20,
        base_image_scale: float | None = None,
        weight: float = 0.25,
        taught_weight: float = 0.25,
        share: float = 1.0,
        loss_weight: float = 1.0,
        starts_random: bool = False,
        is_filled_later: bool = False,
    ) -> None:
        super().__init__()
        self.is_filled_later = is_filled_later
        self.starts_random = starts_random
        self.classifier = classifier.requires_grad_(False).to(memory_format=torch.channels_last)
        self.projection = nn.Linear(channels, language_dim)
        self.log_scale = nn.Parameter(torch.tensor([-2.66]))
        self.texts = tuple(texts)
        self.register_buffer("class_vectors", torch.zeros(len(self.texts), language_dim))
        self.register_buffer("mean_vector", torch.zeros(language_dim))
        self.register_buffer("taught", torch.zeros(_TAUGHT_PLACES, dtype=torch.bool))
        self.register_buffer("pixel_scale", torch.tensor(pixel_scale).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", torch.tensor(pixel_shift).view(-1, 1, 1), persistent=False)
        self.flip_channels = flip_channels
        self.image_scale = image_scale
        self.temperature = temperature
        self.kept = kept
        self.word_temperature = word_temperature
        self.max_boxes = max_boxes
        self.base_image_scale = image_scale if base_image_scale is None else base_image_scale
        self.weight = weight
        self.taught_weight = taught_weight
        self.share = share
        self.loss_weight = loss_weight
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: TrunkShapes) -> dict[str, Any]:
        """Read the arguments that the config decides.

        Raises:
            InputError: A number is not above 0, the text encoder is not frozen, or the classifier cannot be built.
        """
        config, encoder = cfg.MODEL.GLIPV2.CLASS_WORDS, cfg.MODEL.TEXT_ENCODER
        keep, share = cfg.MODEL.GLIPV2.TUNING.KEEP, cfg.MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE
        for key in ("IMAGE_SCALE", "TEMPERATURE", "CLASSES_KEPT", "WORD_TEMPERATURE", "MAX_BOXES"):
            if config[key] <= 0:
                raise InputError(f"{_KEY}.{key}: expected a number above 0, found {config[key]}")
        if not share <= 1:
            raise InputError(f"MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE: expected a share of at most 1, found {share}")
        if not encoder.FREEZE:
            raise InputError(
                f"{_KEY}.ENABLED: expected MODEL.TEXT_ENCODER.FREEZE True, since names are compared by the vectors of "
                "the encoder, found False"
            )
        classifier, scale, shift = build_classifier(config.NAME, config.WEIGHTS, cfg)
        return {
            "classifier": classifier,
            "texts": class_texts(PromptTokenizer.from_config(cfg)),
            "channels": shapes.levels[0].channels,
            "language_dim": shapes.language_dim,
            "pixel_scale": scale,
            "pixel_shift": shift,
            "flip_channels": cfg.INPUT.FORMAT == "BGR",
            "image_scale": config.IMAGE_SCALE,
            # Where the base has no image of its own size, it reads that of the tuned weights.
            "base_image_scale": keep.IMAGE_SCALE if keep.SIZE_TEST and not cfg.TEST.AUG.ENABLED else None,
            "temperature": config.TEMPERATURE,
            "kept": config.CLASSES_KEPT,
            "word_temperature": config.WORD_TEMPERATURE,
            "max_boxes": config.MAX_BOXES,
            "weight": config.WEIGHT,
            "taught_weight": config.TAUGHT_WEIGHT,
            "share": share if share >= 0 else 1.0,
            "loss_weight": config.LOSS_WEIGHT,
            "starts_random": not config.WEIGHTS,
            "is_filled_later": cfg.MODEL.WEIGHTS not in NO_WEIGHTS,
        }

    def train(self, mode: bool = True) -> ClassWordsHead:
        """Set the mode as usual; the classifier stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def become_base(self) -> None:
        """Read images and weigh evidence as the base that answers for other names does, see ``ByName``."""
        self.image_scale, self.share = self.base_image_scale, 1.0

    @torch.no_grad()
    def read_classes(self, encoder: nn.Module) -> None:
        """Encode the texts of the classes: their vectors are the means of the tokens between the special ones.

        A model on the meta device has no values to encode.
        """
        if self.class_vectors.is_meta:
            return
        vectors = []
        for begin in range(0, len(self.texts), _TEXTS_AT_ONCE):
            tokens = TokenBatch.from_prompts(self.texts[begin : begin + _TEXTS_AT_ONCE], self.class_vectors.device)
            vectors.append(mean_of_words(encoder(tokens).hidden, tokens.mask))
        units = F.normalize(torch.cat(vectors), dim=-1)
        self.mean_vector.copy_(units.mean(dim=0))
        self.class_vectors.copy_(centred(units, self.mean_vector))

    @torch.no_grad()
    def classify(self, images: Tensor, fine: Tensor | None = None) -> ClassCells:
        """Classify the cells of N images.

        Args:
            images: (N, 3, H, W), normalized.
            fine: The same at ``image_scale``, from the original pixels; None: the images are enlarged.
        """
        images = (images if fine is None else fine) * self.pixel_scale + self.pixel_shift
        images = images.flip(1) if self.flip_channels else images
        if fine is None and self.image_scale != 1:
            images = F.interpolate(images, scale_factor=self.image_scale, mode="bilinear", antialias=True)
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 32, 0, -height % 32)).contiguous(memory_format=torch.channels_last)
        features = self.classifier.forward_features(images)  # (N, F, h, w)
        logits = self.classifier.get_classifier()(features.flatten(2).transpose(1, 2))  # (N, h * w, K)
        height, width = features.shape[-2:]
        return ClassCells(logits.float(), height, width, 32 / self.image_scale)

    @torch.no_grad()
    def probabilities(self, cells: ClassCells, rows: list[int], boxes: Tensor) -> Tensor:
        """Return the class probabilities of boxes, (M, B, K).

        Args:
            cells: What ``classify`` says of N images.
            rows: For each of M sets of boxes the index of its image.
            boxes: (M, B, 4), pixels of the network's input.
        """
        shares = box_cell_shares(boxes.float(), cells.stride, cells.height, cells.width)
        (logits,) = take_rows([cells.logits], rows)
        return kept_probabilities(shares @ logits, self.temperature, self.kept)

    @torch.no_grad()
    def ratios(self, name_vectors: Tensor) -> Tensor:
        """Compare the classes with P names, (P, D), see ``name_ratios``; (K, P)."""
        names = centred(name_vectors.float(), self.mean_vector)
        return name_ratios(self.class_vectors, names, self.word_temperature)

    def token_weights(self, names: Sequence[tuple[int, ...]], token_map: Tensor) -> Tensor:
        """Return (M, P, T): how much the evidence for a phrase counts at each token of M prompts.

        A token of several phrases takes the mean of what they say.

        Args:
            names: The token ids of all M * P phrases.
            token_map: (M, P, T) bool, the tokens that spell them.
        """
        places, token_map = to_device([torch.tensor([place_of(name) for name in names]), token_map], self.taught.device)
        taught_weight = self.taught_weight * self.share
        weights = torch.where(self.taught[places], taught_weight, self.weight).view(*token_map.shape[:2], 1)
        return token_map * weights / token_map.sum(dim=1, keepdim=True).clamp(min=1)

    def losses(self, fused: Fused, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy between what the classifier and the layer say of positive anchors.

        All ranks call this.

        Args:
            fused: Its ``features`` before fusion and its ``targets`` are read.
            batch: N images with one prompt each, and their boxes.

        Returns:
            ``loss_class_words``, the mean over the positive anchors of all ranks, 0 if there are none; nothing for a
            weight of 0.
        """
        if not self.loss_weight:
            return {}
        targets = fused.targets(batch)
        chosen = targets.matched_idxs >= 0
        count = sum(targets.find_positives().counts)
        regions, images, boxes = take_regions(fused.features, targets.matched_idxs, chosen, count)
        cells = self.classify(batch.images.tensor)
        own_boxes = pad_sequence([one.gt_boxes.tensor for one in boxes_of(batch)], batch_first=True)
        with torch.autocast(regions.device.type, enabled=False):
            taught = self.probabilities(cells, batch.pairs.rows, own_boxes)[images, boxes]
            said = F.normalize(self.projection(regions.float()), dim=-1) @ self.class_vectors.T
            logs = (said / self.log_scale.exp()).log_softmax(dim=-1)
            loss = mean_over_ranks(-(taught * logs).sum(), count)
        return {"loss_class_words": loss * self.loss_weight}

    def observe(self, batch: TrainBatch) -> None:
        """Note names with a box as seen, on all ranks, which all call this."""
        places = []
        for prompt, boxes in zip(batch.prompts, boxes_on_cpu(batch), strict=True):
            names = phrase_ids(prompt)
            places += [place_of(names[row]) for row in set(boxes.gt_classes.tolist())]
        (there,) = to_device([torch.tensor(places, dtype=torch.int64)], self.taught.device)
        self.taught.index_fill_(0, there, True)
        max_over_ranks(self.taught.view(torch.uint8))


def mean_of_words(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (N, D) of the tokens of N texts, without the special tokens at their ends; 0 without others.

    Args:
        hidden: (N, T, D).
        mask: (N, T) bool, True at the tokens of a text.
    """
    # What follows a word is a token, too.
    words = mask[:, 2:, None]
    return hidden[:, 1:-1].where(words, 0.0).sum(dim=1) / words.sum(dim=1).clamp(min=1)


def phrase_ids(prompt: TokenizedPrompt) -> list[tuple[int, ...]]:
    """Return the token ids of each of P phrases, as they were before tokens were masked that have to be restored."""
    ids, labels = prompt.input_ids, prompt.mlm_labels
    ids = ids if labels is None else labels.where(labels >= 0, ids)
    return [tuple(ids[spelled].tolist()) for spelled in prompt.phrase_token_map]


def place_of(name: tuple[int, ...]) -> int:
    """Return the place of a name, by its token ids, in the table of names that were trained on."""
    place = 0
    for number in name:
        place = (place * 1_000_003 + number + 1) % _TAUGHT_PLACES
    return place


def class_texts(tokenizer: PromptTokenizer) -> list[TokenizedPrompt]:
    """Say in words what each class of ImageNet-1k is: its names and its definition in WordNet, by timm's tables."""
    info = ImageNetInfo()
    return [
        tokenizer(prompt_from_caption(info.index_to_description(index, detailed=True), []))
        for index in range(info.num_classes())
    ]


def build_classifier(name: str, weights: str, cfg: CfgNode) -> tuple[nn.Module, list[float], list[float]]:
    """Build a classifier of ImageNet-1k, and say how its input is made of that of the network.

    Returns:
        The classifier, and for each channel, in the order of INPUT.FORMAT, scale and shift.

    Raises:
        InputError: timm does not know the name, the classes are not those of ImageNet-1k, or weights do not fit.
    """
    if not timm.is_model(name):
        raise InputError(f"{_KEY}.NAME: timm has no model {name!r}; timm.list_models() lists its names")
    classifier: Any = timm.create_model(name, pretrained=False)
    expected = ImageNetInfo().num_classes()
    if classifier.num_classes != expected:
        raise InputError(f"{_KEY}.NAME: expected the {expected} classes of ImageNet-1k, found {classifier.num_classes}")
    if weights:
        load_timm_weights(classifier, name, weights, f"{_KEY}.WEIGHTS")
    mean, std = (list(classifier.default_cfg[key]) for key in ("mean", "std"))
    if cfg.INPUT.FORMAT == "BGR":
        mean, std = mean[::-1], std[::-1]
    pixels = list(zip(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, mean, std, strict=True))
    scale = [own_std / (255 * other_std) for _, own_std, _, other_std in pixels]
    shift = [(own_mean / 255 - other_mean) / other_std for own_mean, _, other_mean, other_std in pixels]
    return classifier, scale, shift
