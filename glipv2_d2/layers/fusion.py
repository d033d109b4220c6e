"""Deep fusion: image positions and tokens attend to each other through one shared score matrix, in two equal forms."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .language_layer import clamp_activations, padding_bias
from .positions import cell_coordinates
from .products import apply, is_cpu_inference, linear, per_head

FUSION_FORMS = ("auto", "plain", "folded", "blocks")

# Scores that "blocks" holds at a time: 2 MiB in single precision, which stays in the cache of a CPU.
BLOCK_SCORES = 2**19


# The folded form copies less, and is as fast as the plain one with this many times the products. Measured on one CPU
# thread in float32, forward and with backward: equal near 1.28 (C = 128, d = 64, S = 756, T = 185), 1.1 times as
# fast at 1.10 (C = 96, T = 200), 0.83 at 1.44 (C = 128, T = 256), 3 at 0.20 (C = d = 256, S = 1400, T = 64).
FOLDED_ALLOWANCE = 1.25


def folded_is_faster(num_positions: int, num_tokens: int, visual_dim: int, head_dim: int) -> bool:
    """Tell whether the folded form of the fusion is faster, by the number of products.

    For each head, with S positions, T tokens, C channels and head size d, the plain form needs 3 S d (C + T) products
    and the folded form 3 T C (S + d), without the work on tokens that both share. A backward pass doubles both, so one
    rule serves training and inference, on every device. With d = C = 256 the folded form is faster whenever S > T.

    Args:
        num_positions: S, over all levels.
        num_tokens: T, padding included.
        visual_dim: C.
        head_dim: d.
    """
    plain = num_positions * head_dim * (visual_dim + num_tokens)
    folded = num_tokens * visual_dim * (num_positions + head_dim)
    return folded < FOLDED_ALLOWANCE * plain


class Residual(NamedTuple):
    """What an update is added to, after a factor for each channel: ``base`` + ``scale`` * update."""

    base: Tensor
    scale: Tensor

    def add(self, update: Tensor) -> Tensor:
        """Return the sum."""
        return torch.addcmul(self.base, self.scale, update)


class BiMultiHeadAttention(nn.Module):
    """Attend from image positions to tokens and back with one score matrix.

    The visual projection is the query of both directions, the language projection the key. The score of a position and
    a token serves the image side (softmax over the real tokens) and the text side (softmax over all positions, padded
    image area included).

    Three forms compute the same function of the same parameters:

    * ``plain`` projects every position to ``embed_dim`` channels three times (query, value, output).
    * ``folded`` moves these products to the text side, which is 10 to 1000 times shorter. With X the positions, the
      scores of head h are X (Wq_h^T k_h) plus a bias per token, the visual update is sum_h A_h (v_h Wo_h), the
      language update ((A_h^T X) Wv_h^T + b_v) Wo. No tensor of S x ``embed_dim`` exists.
    * ``blocks`` is the folded form over blocks of positions, whose scores stay in the cache of a CPU. The softmax of
      the text side runs along: its sums are rescaled when a block has larger scores than those before. It has no
      gradients and no dropout; with either, the folded form takes its place.

    Scores are clamped to +-50,000 in the plain form; in the folded form only in half precision, where it matters. The
    softmax runs in float32 at least.

    Args:
        visual_dim: C.
        language_dim: D.
        embed_dim: Width of the attention over all heads.
        num_heads: Must divide ``embed_dim``.
        dropout: Probability for the attention weights of both directions, in training.

    Source: GLIP, Sec. 3.2 (X-MHA); ``BiMultiHeadAttention`` of the official code. The official text side also shifts
    its scores by their maximum and clamps again, which changes nothing: exp(-50,000) is 0.
    """

    def __init__(
        self, visual_dim: int, language_dim: int, embed_dim: int = 2048, num_heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(
                f"MODEL.GLIPV2.FUSION.NUM_HEADS: expected a divisor of embed_dim {embed_dim}, found {num_heads}"
            )
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.visual_proj = nn.Linear(visual_dim, embed_dim)
        self.language_proj = nn.Linear(language_dim, embed_dim)
        self.visual_value_proj = nn.Linear(visual_dim, embed_dim)
        self.language_value_proj = nn.Linear(language_dim, embed_dim)
        self.visual_out_proj = nn.Linear(embed_dim, visual_dim)
        self.language_out_proj = nn.Linear(embed_dim, language_dim)
        for projection in self.children():
            nn.init.xavier_uniform_(projection.get_parameter("weight"))
            nn.init.zeros_(projection.get_parameter("bias"))

    def forward(
        self, visual: Tensor, language: Tensor, mask: Tensor, form: str = "auto", onto: Residual | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the updates of both sides, without the residuals.

        Args:
            visual: (N, S, C), S >= 1.
            language: (N, T, D), T >= 1.
            mask: (N, T) bool, True at real tokens. A prompt without any gives its image equal weights.
            form: "plain", "folded", "blocks", or "auto": see ``folded_is_faster``; "blocks" on the CPU where it may.
            onto: What the visual update is added to. "blocks" writes into the tensor, which may be ``visual`` itself.

        Returns:
            The visual update (N, S, C), or the sum where ``onto`` is given, and the language update (N, T, D); padding
            tokens get an update too.

        Raises:
            InputError: An unknown form.
        """
        form = self._choose(form, visual, language)
        key = self._key(language)
        value = self._split_heads(apply(self.language_value_proj, language))
        if form == "blocks":
            return self._blocks(visual, key, value, mask, onto)
        run = self._folded if form == "folded" else self._plain
        updates = run(visual, key, value, mask)
        return updates if onto is None else (onto.add(updates[0]), updates[1])

    def read_image(self, visual: Tensor, language: Tensor, form: str = "auto") -> Tensor:
        """Compute only the language update, (N, T, D), see ``forward``; no token affects another.

        Instead of "blocks" it takes the folded form.
        """
        form = self._choose(form, visual, language)
        key = self._key(language)
        if form != "plain":
            return self._read_folded(visual, self._folded_scores(visual, key), key.dtype)
        return self._read_plain(visual, self._plain_scores(visual, key))

    def _choose(self, form: str, visual: Tensor, language: Tensor) -> str:
        if form not in FUSION_FORMS:
            raise InputError(f"fusion form: expected one of {', '.join(FUSION_FORMS)}, found {form!r}")
        if form == "auto":
            faster = folded_is_faster(visual.shape[1], language.shape[1], visual.shape[2], self.head_dim)
            form = "folded" if faster else "plain"
            if faster and is_cpu_inference(visual):
                form = "blocks"
        if form == "blocks" and (torch.is_grad_enabled() or (self.training and self.dropout > 0)):
            form = "folded"
        return form

    def _key(self, language: Tensor) -> Tensor:
        return self._split_heads(apply(self.language_proj, language)) * self.head_dim**-0.5  # (N, heads, T, d)

    def _plain(self, visual: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._plain_scores(visual, key)
        bias = padding_bias(mask, scores.dtype)[:, None, None, :]
        to_tokens = self._drop((scores + bias).softmax(-1)).to(value.dtype)
        visual_update = self.visual_out_proj(self._merge_heads(to_tokens @ value))
        return visual_update, self._read_plain(visual, scores)

    def _plain_scores(self, visual: Tensor, key: Tensor) -> Tensor:
        query = self._split_heads(self.visual_proj(visual))  # (N, heads, S, d)
        return clamp_activations(query @ key.transpose(-1, -2))  # (N, heads, S, T)

    def _read_plain(self, visual: Tensor, scores: Tensor) -> Tensor:
        visual_value = self._split_heads(self.visual_value_proj(visual))
        to_positions = self._drop(_single(scores).softmax(-2)).to(visual_value.dtype)
        return self.language_out_proj(self._merge_heads(to_positions.transpose(-1, -2) @ visual_value))

    def _folded(self, visual: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.num_heads
        folded_value = self._fold_value(value)
        scores = self._folded_scores(visual, key)
        bias = padding_bias(mask, scores.dtype)[:, None, None, :]
        to_tokens = (scores.unflatten(-1, (heads, -1)) + bias).softmax(-1)
        to_tokens = self._drop(to_tokens).to(value.dtype).flatten(2)  # (N, S, heads*T)
        visual_update = torch.baddbmm(self.visual_out_proj.bias, to_tokens, folded_value)  # (N, S, C)
        return visual_update, self._read_folded(visual, scores, value.dtype)

    def _blocks(
        self, visual: Tensor, key: Tensor, value: Tensor, mask: Tensor, onto: Residual | None
    ) -> tuple[Tensor, Tensor]:
        """Let each image and its tokens attend to each other, block after block of positions."""
        folded_keys, key_biases = self._fold_key(key)
        folded_values = self._fold_value(value).transpose(1, 2).contiguous()  # (N, C, heads*T)
        update = torch.empty_like(visual) if onto is None else onto.base
        gathered = torch.zeros_like(folded_values)
        rows = max(1, BLOCK_SCORES // folded_keys.shape[1])
        for image, positions in enumerate(visual):
            folded_key, key_bias, folded_value = folded_keys[image], key_biases[image, 0], folded_values[image]
            bias = None if mask[image].all() else padding_bias(mask[image], visual.dtype)
            largest, total = torch.full_like(key_bias, float("-inf")), torch.zeros_like(key_bias)
            sums = gathered[image]
            for block, block_update in zip(positions.split(rows), update[image].split(rows), strict=True):
                scores = linear(block, folded_key, key_bias)  # (B, heads*T)
                previous, largest = largest, torch.maximum(largest, scores.amax(0))
                to_positions = (scores - largest).exp_()
                rescale = (previous - largest).exp_()
                total.mul_(rescale).add_(to_positions.sum(0))
                # (C, heads*T)
                sums.mul_(rescale).add_(linear(block.t(), to_positions.t()))
                scores = scores.unflatten(1, (self.num_heads, -1))  # (B, heads, T)
                to_tokens = (scores if bias is None else scores.add_(bias)).softmax(-1).flatten(1)
                # What the block held has been read.
                found = linear(to_tokens, folded_value, self.visual_out_proj.bias)
                block_update.copy_(found) if onto is None else block_update.addcmul_(onto.scale, found)
            sums.div_(total)
        gathered = gathered.transpose(1, 2).unflatten(1, (self.num_heads, -1))  # (N, heads, T, C)
        return update, self._project_gathered(gathered, None)

    def _fold_value(self, value: Tensor) -> Tensor:
        """Multiply values (N, heads, T, d) by the output projection of the image side, (N, heads*T, C)."""
        out_weight = self.visual_out_proj.weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1)  # (heads, C, d)
        return per_head(value, out_weight).flatten(1, 2)

    def _fold_key(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply keys (N, heads, T, d) by the query projection: (N, heads*T, C), and biases (N, 1, heads*T)."""
        query_weight = self.visual_proj.weight.unflatten(0, (self.num_heads, -1))  # (heads, d, C)
        query_bias = self.visual_proj.bias.unflatten(0, (self.num_heads, -1, 1))  # (heads, d, 1)
        return per_head(key, query_weight.transpose(1, 2)).flatten(1, 2), (key @ query_bias).flatten(1).unsqueeze(1)

    def _folded_scores(self, visual: Tensor, key: Tensor) -> Tensor:
        folded_key, key_bias = self._fold_key(key)
        scores = torch.baddbmm(key_bias, visual, folded_key.transpose(1, 2))  # (N, S, heads*T)
        return clamp_activations(scores) if scores.dtype.itemsize < 4 else scores

    def _read_folded(self, visual: Tensor, scores: Tensor, dtype: torch.dtype) -> Tensor:
        to_positions = self._drop(_single(scores).softmax(1)).to(dtype)  # (N, S, heads*T)
        # In this order the gradient of the weights needs no transposed copy.
        gathered = (visual.transpose(1, 2) @ to_positions).transpose(1, 2)  # (N, heads*T, C)
        return self._project_gathered(gathered.unflatten(1, (self.num_heads, -1)), to_positions)

    def _project_gathered(self, gathered: Tensor, to_positions: Tensor | None) -> Tensor:
        heads = self.num_heads
        value_weight = self.visual_value_proj.weight.unflatten(0, (heads, -1))  # (heads, d, C)
        value_bias = self.visual_value_proj.bias.unflatten(0, (heads, 1, -1))  # (heads, 1, d)
        if to_positions is not None and self.training and self.dropout > 0:
            # Weights sum to one over the positions, so the bias passes through as it is, but not after dropout.
            totals = to_positions.sum(1).unflatten(1, (heads, -1)).unsqueeze(-1)  # (N, heads, T, 1)
            value_bias = value_bias * totals
        attended = per_head(gathered, value_weight) + value_bias  # (N, heads, T, d)
        return apply(self.language_out_proj, self._merge_heads(attended))

    def _split_heads(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, length, d)

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).flatten(2)  # (N, length, heads*d)

    def _drop(self, weights: Tensor) -> Tensor:
        return F.dropout(weights, self.dropout, self.training)


def _single(scores: Tensor) -> Tensor:
    """Turn half types into float32, for the softmax."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class BiAttentionBlock(nn.Module):
    """Fuse the pyramid with the tokens: normalize both, let them attend to each other, add the updates.

    All positions of all levels form one sequence. The updates are added to the *normalized* input, not to the input
    itself, after ``gamma_visual`` and ``gamma_language`` have scaled them per channel. For captioning the image does
    not attend to the text (GLIPv2, App. D.2).

    Args:
        visual_dim: C.
        language_dim: D.
        embed_dim: Width of the attention over all heads.
        num_heads: Heads of the attention.
        dropout: Probability for the attention weights, in training.
        layer_scale: Initial value of both gammas.
        form: See ``BiMultiHeadAttention.forward``.
        positions: Add coordinates, through a learned layer, to the image features that the text attends to; the
            features that the image layers read stay as they are. The official models know positions from padding alone.

    Source: GLIP, Sec. 3.2; ``BiAttentionBlockForCheckpoint`` of the official code (drop path is 0 there). The
    coordinates follow UNITER, VinVL and other models that answer questions.
    """

    def __init__(
        self,
        visual_dim: int,
        language_dim: int,
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        layer_scale: float,
        form: str = "auto",
        positions: bool = False,
    ) -> None:
        super().__init__()
        if form not in FUSION_FORMS:
            raise InputError(f"BiAttentionBlock form: expected one of {', '.join(FUSION_FORMS)}, found {form!r}")
        self.form = form
        self.norm_visual = nn.LayerNorm(visual_dim)
        self.norm_language = nn.LayerNorm(language_dim)
        self.attention = BiMultiHeadAttention(visual_dim, language_dim, embed_dim, num_heads, dropout)
        self.position_proj = nn.Linear(2, visual_dim, bias=False) if positions else None
        if self.position_proj is not None:
            # The code starts at about 0.6 of the size of the normalized features; one that starts small stays too
            # small.
            nn.init.normal_(self.position_proj.weight, std=0.75)
        self.gamma_visual = nn.Parameter(torch.full((visual_dim,), float(layer_scale)))
        self.gamma_language = nn.Parameter(torch.full((language_dim,), float(layer_scale)))

    def forward(
        self, features: list[Tensor], hidden: Tensor, mask: Tensor, image_reads: bool = True, rows: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Fuse L levels and the tokens.

        Args:
            features: L >= 1 maps (N, C, Hl, Wl).
            hidden: (N, T, D).
            mask: (N, T) bool, True at real tokens. Results at positions and real tokens do not depend on the padding.
            image_reads: False: positions do not attend to tokens and get no update. Tokens still attend to positions.
            rows: (M,) int64, only without ``image_reads``: for each of M texts the image that it reads.

        Returns:
            L maps of the same shapes, channels last in memory, and the tokens (N or M, T, D).
        """
        visual = self.normalize_image(features)
        placed = self.place(visual, features)
        if not image_reads:
            read = placed if rows is None else placed[rows]
            return split_levels(visual, features), self.read_image(read, hidden)
        language = self.norm_language(hidden)
        residual = Residual(visual, self.gamma_visual)
        visual, language_update = self.attention(placed, language, mask, self.form, residual)
        language = torch.addcmul(language, self.gamma_language, language_update)
        return split_levels(visual, features), language

    def normalize_image(self, features: list[Tensor]) -> Tensor:
        """Return all positions of L maps (N, C, Hl, Wl) as one normalized sequence (N, S, C), finest level first."""
        visual = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)  # (N, S, C)
        return self.norm_visual(visual)

    def place(self, visual: Tensor, features: list[Tensor]) -> Tensor:
        """Add coordinates to the normalized positions (N, S, C) of L maps, if the block has the layer for them."""
        return visual if self.position_proj is None else visual + self.position_proj(cell_coordinates(features))

    def read_image(self, visual: Tensor, hidden: Tensor, form: str | None = None) -> Tensor:
        """Let tokens (N, T, D) read the positions (N, S, C) that ``place`` returns; tokens do not depend on each other.

        The form is that of the block unless ``form`` is given.
        """
        language = self.norm_language(hidden)
        update = self.attention.read_image(visual, language, form or self.form)
        return torch.addcmul(language, self.gamma_language, update)


def split_levels(visual: Tensor, features: list[Tensor]) -> list[Tensor]:
    """Cut positions (N, S, C) into maps as large as the L maps ``features``, channels last in memory."""
    sizes = [level.shape[-2:] for level in features]
    pieces = visual.split([height * width for height, width in sizes], dim=1)
    return [piece.transpose(1, 2).unflatten(2, tuple(size)) for piece, size in zip(pieces, sizes, strict=True)]
