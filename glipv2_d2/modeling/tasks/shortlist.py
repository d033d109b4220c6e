"""The shortlist of a large vocabulary: the names that an image resembles most before it is fused with any text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor

from ...device_copies import to_device
from ...errors import InputError
from ...layers.products import linear
from ...prompts.name_subsets import is_vocabulary, prompts_of_names
from ...structures import TokenizedPrompt
from ..heads.table import HEADS
from ..trunk import Trunk

# Shares of regions and words that are held at a time: 16 MiB in single precision.
_MOST_SHARES = 2**22
# Regions that rate a name. Of 1 to 32 and all, 8 had the best recall (docs/experiments/large_vocabularies.md).
_REGIONS = 8
# Prompts of a vocabulary that are read together.
_PROMPTS = 32


class NameWords(NamedTuple):
    """The words of a vocabulary's names in the space of the contrastive head; names without words are left out.

    Attributes:
        vectors: (W, E), name after name, those with the fewest words first.
        sizes: Pairs of a number of words and the number of names that have so many, in this order.
        order: (P,) int64 on the device of the vectors, the place of each name among them, in the order of ``rows``.
        rows: (P,) int64 on the CPU, the numbers of the names over all prompts, ascending.
    """

    vectors: Tensor
    sizes: list[tuple[int, int]]
    order: Tensor
    rows: Tensor


class Shortlist:
    """Choose for each image the K names that its regions resemble most.

    The contrastive loss trains image features and words that have not read each other. Their products, the logits of
    that loss, need no tower: one product ranks a whole vocabulary, whose words are read once. A region shares
    itself out among all words of the vocabulary by a softmax of its logits, as that loss does; a name has what its
    words have, and is rated by the sum over the few regions that give it most, of those whose centers lie in the image.
    Of equal names the earlier ones are chosen. The names then make prompts of their own, in
    the order of the vocabulary, as if nothing else had been asked for.

    Args:
        size: K.
        max_tokens: Most tokens of a prompt.

    Source: GLIPv2, Sec. 3.2, for what the loss trains; the shortlist is not in the paper.
    """

    def __init__(self, size: int, max_tokens: int) -> None:
        self.size = size
        self.max_tokens = max_tokens

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Shortlist | None:
        """Read the config; None if it asks for no shortlist.

        Raises:
            InputError: The model has no contrastive head, or its prompt is tuned, which takes no other prompts.
        """
        size, key = cfg.MODEL.GLIPV2.TEST.SHORTLIST, "MODEL.GLIPV2.TEST.SHORTLIST"
        if size < 0:
            raise InputError(f"{key}: expected a number of names, or 0 for all, found {size}")
        if size == 0:
            return None
        if not HEADS["contrastive_head"].is_on(cfg):
            raise InputError(
                f"{key}: expected 0 for a model without a contrastive head, which ranks the names, found {size}; set "
                "it to 0, or give MODEL.GLIPV2.CONTRASTIVE.ENABLED True and weights that were trained with it"
            )
        if cfg.MODEL.GLIPV2.TUNING.MODE == "prompt":
            raise InputError(f"{key}: expected 0 for a model whose prompt is tuned, found {size}")
        return cls(size, cfg.MODEL.TEXT_ENCODER.MAX_TOKENS)

    @torch.no_grad()
    def choose(
        self,
        model: Trunk,
        features: list[Tensor],
        anchors: list[Boxes],
        image_sizes: Sequence[tuple[int, int]],
        prompts: Sequence[list[TokenizedPrompt]],
    ) -> list[list[TokenizedPrompt]]:
        """Return for each of N images the prompts of its shortlist.

        Prompts that are not lists of names stay as they are, and so do vocabularies of at most K names.

        Args:
            model: Has a contrastive head.
            features: L levels (N, C, Hl, Wl) before fusion, of images that are padded to one size.
            anchors: L sets, one box per location.
            image_sizes: Height and width of the images without padding.
            prompts: A list for each image.
        """
        groups: dict[bytes, list[int]] = {}
        for image, own in enumerate(prompts):
            if sum(len(prompt.phrases) for prompt in own) > self.size and is_vocabulary(own):
                groups.setdefault(_digest(own), []).append(image)
        if not groups:
            return list(prompts)
        sizes, *places = to_device(
            [torch.tensor(image_sizes), *(torch.tensor(images) for images in groups.values())], features[0].device
        )
        regions = model.contrastive_head.regions_of(features)
        inside = _in_image(anchors, sizes)
        vocabularies = [self._vectors(model, key, prompts[images[0]]) for key, images in groups.items()]
        best = [
            rank_names(regions[place], inside[place], vocabulary)[:, : self.size]
            for place, vocabulary in zip(places, vocabularies, strict=True)
        ]
        # The CPU waits for the device here, and only here.
        on_cpu = torch.cat([one.flatten() for one in best]).cpu()
        chosen = iter(on_cpu.split([one.shape[1] for one in best for _ in one]))
        result = list(prompts)
        for images, vocabulary in zip(groups.values(), vocabularies, strict=True):
            for image in images:
                rows = vocabulary.rows[next(chosen)].sort().values.tolist()
                result[image] = prompts_of_names(prompts[image], rows, max_tokens=self.max_tokens)
        return result

    def _vectors(self, model: Trunk, key: bytes, prompts: list[TokenizedPrompt]) -> NameWords:
        head = model.contrastive_head
        weights = tuple((one.data_ptr(), one._version) for one in head.text_projection.parameters())
        return model.remember((key, weights), lambda: read_names(model, prompts))


def read_names(model: Trunk, prompts: Sequence[TokenizedPrompt]) -> NameWords:
    """Read a vocabulary, some prompts at a time."""
    read, spelled, num_tokens = [], [], 0
    for begin in range(0, len(prompts), _PROMPTS):
        together = prompts[begin : begin + _PROMPTS]
        embedded = model.read_prompts(together).embedded  # (M, T, D)
        read.append(model.contrastive_head.project_words(embedded.flatten(0, 1)))  # (M * T, E)
        for prompt in together:
            spelled += [(num_tokens + row.nonzero().squeeze(1)).tolist() for row in prompt.phrase_token_map]
            num_tokens += embedded.shape[1]
    rows = [row for row, words in enumerate(spelled) if words]
    by_length = sorted(rows, key=lambda row: len(spelled[row]))
    places = torch.tensor(by_length, dtype=torch.int64).argsort()
    words = torch.tensor([word for row in by_length for word in spelled[row]], dtype=torch.int64)
    words, places = to_device([words, places], read[0].device)
    sizes = sorted(Counter(len(spelled[row]) for row in rows).items())
    return NameWords(torch.cat(read)[words], sizes, places, torch.tensor(rows))


def rank_names(regions: Tensor, inside: Tensor, names: NameWords) -> Tensor:
    """Order P names by what the regions of each of N images give them.

    Args:
        regions: (N, R, E).
        inside: (N, R) bool, the regions that count.
        names: The names.

    Returns:
        (N, P) int64, rows of ``names.rows``, best first; of equal names the earlier one.
    """
    best = regions.new_empty(len(regions), 0, len(names.rows))
    positions = max(1, _MOST_SHARES // max(1, len(regions) * len(names.vectors)))
    for block, counts in zip(regions.split(positions, dim=1), inside.split(positions, dim=1), strict=True):
        shares = linear(block, names.vectors).softmax(dim=-1) * counts[..., None]  # (N, B, W)
        pieces = shares.split([length * count for length, count in names.sizes], dim=-1)
        of_names = [
            piece if length == 1 else piece.unflatten(-1, (-1, length)).sum(dim=-1)
            for piece, (length, _) in zip(pieces, names.sizes, strict=True)
        ]
        best = torch.cat([best, torch.cat(of_names, dim=-1)], dim=1)  # (N, at most B + 8, P)
        best = best.topk(min(_REGIONS, best.shape[1]), dim=1).values
    return best.sum(dim=1)[:, names.order].sort(dim=1, descending=True, stable=True).indices


def _in_image(anchors: list[Boxes], sizes: Tensor) -> Tensor:
    """Mark, (N, R) bool, the regions with their center in images of ``sizes``, (N, 2) height and width; at least one.

    The anchors are those of all levels, one per location.
    """
    centers = Boxes.cat(anchors).get_centers()  # (R, 2): x, y
    inside = (centers < sizes.flip(1)[:, None]).all(dim=-1)
    inside[:, 0] = True
    return inside


def _digest(prompts: Sequence[TokenizedPrompt]) -> bytes:
    """Return a number of 256 bits for the tokens of prompts and the names that they spell."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr(prompt.phrase_token_map.shape).encode())
        digest.update(prompt.input_ids.numpy().tobytes())
        digest.update(prompt.phrase_token_map.numpy().tobytes())
    return digest.digest()
