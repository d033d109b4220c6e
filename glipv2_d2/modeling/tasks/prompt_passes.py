"""Plan which images and prompts run through the model together: passes of bounded memory for any vocabulary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InputError
from ...structures import TokenizedPrompt
from ..batch import Pairs


def plan_passes(prompts: Sequence[Sequence[TokenizedPrompt]], max_pairs: int) -> list[Pairs]:
    """Cut a batch of images with their prompts into passes.

    Prompts of similar length run together, because all prompts of a pass are padded to the longest.

    Args:
        prompts: For each of N images its prompts, at least one.
        max_pairs: The most pairs in a pass; the memory of tower and heads grows with it.

    Returns:
        Passes that together hold every pair once, the longest prompts first.

    Raises:
        InputError: ``max_pairs`` is below 1.
    """
    if max_pairs < 1:
        raise InputError(f"MODEL.GLIPV2.TEST.PROMPTS_PER_PASS: expected at least 1, found {max_pairs}")
    pairs = [(row, rank) for row, of_image in enumerate(prompts) for rank in range(len(of_image))]
    # Pairs with the same prompt list stay adjacent in the order of the images, so that ``select`` need not copy.
    pairs.sort(key=lambda pair: (-len(prompts[pair[0]][pair[1]]), pair[1], pair[0]))
    return Pairs.choose(prompts, pairs).split(max_pairs)


def rows_by_padded_size(batched_inputs: Sequence[dict[str, Any]], divisor: int) -> list[list[int]]:
    """Group model inputs that may run together: of one task, one size after padding, and one limit of detections.

    Other versions of images have one size after padding, too: what an image is padded with is seen.

    Args:
        batched_inputs: The model inputs.
        divisor: Sizes are padded to a multiple of it.

    Returns:
        For each group the indices of its inputs. A divisor of 0 means no padding.
    """
    divisor = max(divisor, 1)
    groups: dict[tuple, list[int]] = defaultdict(list)
    for row, inputs in enumerate(batched_inputs):
        versions = [one.get(key) for one in (inputs, inputs.get("of_base", {})) for key in ("image", "fine_image")]
        sizes = tuple(-(-side // divisor) for one in versions for side in ((0,) if one is None else one.shape[-2:]))
        groups[inputs.get("task", "detection"), inputs.get("detection_limits"), sizes].append(row)
    return list(groups.values())


def answer_by_size(
    batched_inputs: Sequence[dict[str, Any]], divisor: int, answer: Callable[[list[dict[str, Any]]], list[dict]]
) -> list[dict[str, Any]]:
    """Answer N model inputs by ``answer`` in groups that may run together, see ``rows_by_padded_size``."""
    results: list[dict[str, Any]] = [{}] * len(batched_inputs)
    for rows in rows_by_padded_size(batched_inputs, divisor):
        for row, output in zip(rows, answer([batched_inputs[row] for row in rows]), strict=True):
            results[row] = output
    return results
