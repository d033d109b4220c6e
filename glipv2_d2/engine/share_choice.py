"""The choice of weights between a base and a tuned model: as close to the base as the own names allow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data.build import build_test_loader
from ..data.loading import load_test_dataset
from ..modeling.keeping import agreement, predictions_of
from ..modeling.trunk import Trunk
from ..prompts.kept_names import KeptNames
from ..prompts.tokenizer import PromptTokenizer
from ..prompts.vocabulary import dataset_names
from ..structures import KEPT_NAME, TokenBatch

# Shares are found by halving, so they are multiples of one over two to this number.
_HALVINGS = 3
# Images, over all processes, that two models are compared on, and prompts of other names that they are asked with.
_COMPARED_IMAGES, _COMPARED_PROMPTS = 32, 8


class Choice(NamedTuple):
    """A share of the tuned weights, and what speaks for it.

    Attributes:
        share: In (0, 1].
        own: For each share that was tried the metric of the own names.
        agreement: For each of those that keep enough of it the agreement with the base on other names, 0 to 1.
    """

    share: float
    own: dict[float, float]
    agreement: dict[float, float]


def choose_share(own: Callable[[float], float], agree: Callable[[float], float], least_own: float) -> Choice:
    """Choose the share with the highest agreement among those that keep enough of the best metric of the own names.

    The shares that are tried are 1, and then the middle between the lowest one that keeps enough and the highest one
    that does not, or 0.

    Args:
        own: Measures the metric of the own names at a share of the tuned weights, 0 or more.
        agree: Measures the agreement with the base on other names.
        least_own: The part of the best metric that is enough, 0 to 1.
    """
    rated = {1.0: own(1.0)}
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rated[middle] = own(middle)
        low, high = (low, middle) if rated[middle] >= least_own * max(rated.values()) else (middle, high)
    enough = least_own * max(rated.values())
    agreed = {share: agree(share) for share, value in rated.items() if value >= enough}
    return Choice(max(agreed, key=lambda share: (agreed[share], -share)), rated, agreed)


class Comparison:
    """Compares models with their base on test images and other names, without labels.

    Args:
        cfg: The images are the first ones of DATASETS.TEST.
        base: The base.
    """

    def __init__(self, cfg: CfgNode, base: Trunk) -> None:
        self._base = base
        dataset = cfg.DATASETS.TEST[0]
        own = itertools.chain(*map(dataset_names, cfg.DATASETS.TRAIN))
        names, tokenizer = KeptNames.from_config(cfg, own), PromptTokenizer.from_config(cfg)
        prompts = names.prompts(tokenizer, cfg.INPUT.PROMPT.SEPARATOR, _COMPARED_PROMPTS)
        loader = build_test_loader(cfg, load_test_dataset(cfg, dataset))
        samples = itertools.chain(*itertools.islice(loader, -(-_COMPARED_IMAGES // comm.get_world_size())))
        self._samples = [
            (sample, prompt) for sample, prompt in zip(samples, itertools.cycle(prompts)) if "unreadable" not in sample
        ]

    @torch.no_grad()
    def __call__(self, model: Trunk) -> float:
        """Return the sum of the smaller over the sum of the larger probabilities, over all anchors, names and images.

        It is 1 for equal models, and 1 without any image. All processes call this.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        reading = model.tasks["detection"].reading
        for sample, prompt in self._samples:
            tokens = TokenBatch.from_prompts([prompt], model.device)
            kept = prompt.phrase_token_map[prompt.category_ids == KEPT_NAME].any(dim=0)[None].to(model.device)
            logits, base_logits = (
                predictions_of(one, one.preprocess_image([sample]), tokens, reading).token_logits
                for one in (model, self._base)
            )
            sums += torch.stack(agreement(logits, base_logits, kept)).cpu()
        least, most = torch.stack(comm.all_gather(sums)).sum(dim=0).tolist()
        return least / most if most else 1.0
