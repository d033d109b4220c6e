"""From a ``Prompt`` to a ``TokenizedPrompt``: the only module of the package where characters become tokens."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer

from ..errors import InputError
from ..structures import CharSpan, Prompt, TokenizedPrompt
from .builder import SEPARATOR, check_vocabulary, clean_name, prompt_from_names, shorten, token_name
from .decoding import DecodedText, decode_tokens
from .pretrained import resolve_pretrained

VOCABULARY_FILE = Path(__file__).with_name("bert_uncased_vocab.txt")

# Token counts are kept for the names of a vocabulary; the limits keep a stream of free texts from filling the memory.
_MAX_REMEMBERED_COUNTS = 100_000
_MAX_REMEMBERED_LENGTH = 100

# Size and last token of CLIP's vocabulary, by which it is recognised, and the id that the official code masks with.
_CLIP_VOCAB_SIZE = 49408
_CLIP_LAST_TOKEN = "<|endoftext|>"
_CLIP_MASK_ID = 49404

# How the tokenizers of BERT, CLIP and RoBERTa write their special tokens, and halves of a pair of surrogates.
_SPECIAL_TOKEN = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]|<(\|(?:startoftext|endoftext)\||/?s|pad|unk|mask)>")
_SURROGATE = re.compile("[\ud800-\udfff]")

_RESERVED_TOKEN = re.compile(r"\[unused\d+\]")


def phrase_token_map(
    phrase_spans: Sequence[Sequence[CharSpan]], char_to_token: Callable[[int], int | None], num_tokens: int
) -> Tensor:
    """Mark, for each phrase of a caption, the tokens that spell it.

    If the first character of a range has no token, the two characters after it are tried; if the last has none, the two
    before it. A range without a token at one of its ends, or with its last token before its first, marks nothing.

    Args:
        phrase_spans: For each of P phrases its half-open character ranges. A phrase may have several, such as "dog"
            and "white" in "a dog, mostly white".
        char_to_token: Token index of a character; None for white space, for text cut off at the token limit, and past
            the end of the caption.
        num_tokens: T, special tokens included.

    Returns:
        (P, T) bool. A row with no True belongs to a phrase that was cut off; the caller drops its boxes.

    Raises:
        InputError: A range ends at or before character 0.

    Source: ``tokens_positive`` of MDETR, with the edge rule of the official GLIP code.
    """
    token_map = np.zeros((len(phrase_spans), num_tokens), dtype=bool)
    for row, spans in enumerate(phrase_spans):
        for begin, end in spans:
            if end < 1:
                raise InputError(f"phrase_spans[{row}]: the range ({begin}, {end}) ends before the first character")
            first = _first_found(char_to_token, (begin, begin + 1, begin + 2))
            last = _first_found(char_to_token, (end - 1, end - 2, end - 3))
            if first is not None and last is not None:
                token_map[row, first : last + 1] = True
    return torch.from_numpy(token_map)


def without_special_tokens(text: str) -> str:
    """Return a text without special tokens: "[MASK]" becomes "(MASK)", "<|endoftext|>" becomes "(|endoftext|)".

    The length and all other characters stay, so that character ranges stay valid.
    """
    return _SPECIAL_TOKEN.sub(lambda match: f"({match[1] or match[2]})", text)


class PromptTokenizer:
    """Turn prompts into token ids and phrase-token maps; one object serves all prompts of a process.

    It can be pickled and used after a fork, because it encodes in the calling thread.

    Args:
        path: Directory, ``package://PACKAGE/DIRECTORY`` or hub name of a fast tokenizer; empty: the packaged uncased
            WordPiece vocabulary of BERT.
        max_tokens: Longest prompt, special tokens included.
        allow_download: Fetch a hub name that is not in the local cache.

    Raises:
        FileNotFoundError: Nothing is found at ``path``.
        InputError: ``path`` holds no fast tokenizer, or ``max_tokens`` leaves no room between the special tokens.
    """

    def __init__(self, path: str = "", max_tokens: int = 256, allow_download: bool = False) -> None:
        # The tokenizer inside the fast one of transformers. It encodes one text at a time and does not start the thread
        # pool that a fork would break.
        self._encoder, self._mask_token = _load_fast_tokenizer(path, allow_download) if path else _packaged_tokenizer()
        self._path = path
        self._token_counts: dict[str, int] = {}
        self.max_tokens = max_tokens
        # Number of tokens in a prompt that are not special.
        self.max_content_tokens = max_tokens - self._encoder.num_special_tokens_to_add(False)
        if self.max_content_tokens < 1:
            raise InputError(f"MODEL.TEXT_ENCODER.MAX_TOKENS: {max_tokens} leaves no room between the special tokens")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PromptTokenizer:
        """Build the tokenizer that belongs to ``cfg.MODEL.TEXT_ENCODER``."""
        encoder = cfg.MODEL.TEXT_ENCODER
        return cls(encoder.TOKENIZER, encoder.MAX_TOKENS, encoder.ALLOW_DOWNLOAD)

    def save(self, path: Path) -> None:
        """Write it as a file of the library tokenizers, for programs without this package."""
        self._encoder.save(str(path))

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of token ids: every id is below it."""
        return _count_ids(self._encoder)

    @property
    def mask_id(self) -> int:
        """Id of the token that stands for a masked one.

        The vocabulary of CLIP has none; there it is the id of a rare token, as in the official code.

        Raises:
            InputError: The tokenizer has no mask token, and its vocabulary is not that of CLIP.
        """
        mask_id = None if self._mask_token is None else self._encoder.token_to_id(self._mask_token)
        if mask_id is not None:
            return mask_id
        if self.vocab_size == _CLIP_VOCAB_SIZE and self._encoder.token_to_id(_CLIP_LAST_TOKEN) == _CLIP_VOCAB_SIZE - 1:
            return _CLIP_MASK_ID
        raise InputError(
            f"MODEL.TEXT_ENCODER.TOKENIZER: {self._path!r} has no mask token, expected one with "
            f"MODEL.GLIPV2.MLM.ENABLED True"
        )

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are not text, ascending: start, end, padding, mask and the like."""
        tokens = self._encoder.get_added_tokens_decoder()
        return tuple(sorted(index for index, token in tokens.items() if token.special))

    @functools.cached_property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that the vocabulary of BERT keeps free, ascending; they occur in no text."""
        tokens = self._encoder.get_vocab(with_added_tokens=True)
        return tuple(sorted(index for token, index in tokens.items() if _RESERVED_TOKEN.fullmatch(token)))

    @property
    def start_id(self) -> int:
        """Id of the token that every text begins with."""
        return self._encoder.encode("").ids[0]

    @property
    def end_id(self) -> int:
        """Id of the token that every text ends with."""
        return self._encoder.encode("").ids[-1]

    def decode(self, input_ids: Sequence[int]) -> DecodedText:
        """Turn token ids into text, see ``decode_tokens``."""
        return decode_tokens(self._encoder, input_ids)

    def __call__(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokenize a prompt. Text past ``max_tokens`` is cut off, and phrases there mark no token."""
        return self._tokenize(prompt)[0]

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """Id of the token that stands for everything outside the vocabulary; None if there is no such text."""
        unknown = getattr(self._encoder.model, "unk_token", None)
        return None if unknown is None else self._encoder.token_to_id(unknown)

    def unknown_pieces(self, text: str) -> list[str]:
        """Return the parts of a text that the vocabulary does not know, each once; they all have one token."""
        encoding = self._encode(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[begin:end] for index, (begin, end) in pairs if index == self.unknown_id))

    def same_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return groups of rows whose texts have equal tokens."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, text in enumerate(texts):
            rows.setdefault(tuple(self._encode(text).ids), []).append(row)
        return [group for group in rows.values() if len(group) > 1]

    def token_name(self, text: str) -> str:
        """Return the ``token_name`` of a text; "" if it has no tokens, or some that the vocabulary does not know."""
        ids = self._encode(text).ids
        return token_name(ids) if ids and self.unknown_id not in ids else ""

    def _encode(self, text: str) -> Encoding:
        """Encode a text without adding special tokens; those that it spells are text, too."""
        return self._encoder.encode(_SURROGATE.sub("\ufffd", without_special_tokens(text)), add_special_tokens=False)

    def _tokenize(self, prompt: Prompt) -> tuple[TokenizedPrompt, bool]:
        """Return the tokenized prompt, and whether some of it was cut off."""
        encoding = self._encode(prompt.caption)
        is_cut = len(encoding) > self.max_content_tokens
        encoding.truncate(self.max_content_tokens)
        encoding = self._encoder.post_process(encoding)
        tokenized = TokenizedPrompt(
            input_ids=torch.tensor(encoding.ids, dtype=torch.int64),
            phrase_token_map=phrase_token_map(prompt.phrase_spans, encoding.char_to_token, len(encoding.ids)),
            category_ids=torch.tensor(prompt.category_ids, dtype=torch.int64),
            phrases=prompt.phrases,
            name_ranges=tuple(_token_range(span, encoding.char_to_token) for span in prompt.name_spans),
        )
        return tokenized, is_cut

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without special tokens and without a limit."""
        count = self._token_counts.get(text)
        if count is None:
            count = len(self._encode(text).ids)
            if len(self._token_counts) < _MAX_REMEMBERED_COUNTS and len(text) <= _MAX_REMEMBERED_LENGTH:
                self._token_counts[text] = count
        return count

    def chunk_names(
        self, names: Sequence[str], *, chunk_size: int = 0, separator: str = SEPARATOR, with_blank: bool = False
    ) -> list[list[int]]:
        """Cut a vocabulary into consecutive chunks whose prompts fit into ``max_tokens``.

        Args:
            names: P >= 1 names.
            chunk_size: The most names in a chunk; 0: as many as fit.
            separator: Text between two names.
            with_blank: See ``prompt_from_names``.

        Returns:
            For each chunk the rows of its names; together they are 0..P-1.

        Raises:
            TypeError, ValueError: As ``check_vocabulary``; and ValueError for a name that no chunk can hold.
        """
        check_vocabulary(names, with_blank=with_blank)
        chunks: list[list[int]] = [[]]
        used = 0
        for row, name in enumerate(names):
            text = clean_name(name)
            alone = self.count_tokens(text)
            if not (1 <= alone <= self.max_content_tokens or (with_blank and not name.strip())):
                raise InputError(
                    f"names[{row}]: {shorten(name)} has {alone} tokens, expected 1 to {self.max_content_tokens} "
                    f"(MODEL.TEXT_ENCODER.MAX_TOKENS without special tokens)"
                )
            if chunks[-1] and (used + alone > self.max_content_tokens or len(chunks[-1]) == chunk_size):
                chunks.append([])
                used = 0
            chunks[-1].append(row)
            used += self.count_tokens(text + separator)
        return chunks

    def tokenize_names(
        self, names: Sequence[str], *, separator: str = SEPARATOR, chunk_size: int = 0, with_blank: bool = False
    ) -> list[TokenizedPrompt]:
        """Tokenize a whole vocabulary, one prompt per chunk of names; detections get the ids 0..P-1 of the rows.

        Args:
            names: P >= 1 names.
            separator: Stands between two names.
            chunk_size: Most names of a chunk; 0: as many as fit.
            with_blank: See ``prompt_from_names``.

        Raises:
            TypeError, ValueError: As ``chunk_names``; and ValueError for a name that ends up without a token.
        """
        chunks = self.chunk_names(names, chunk_size=chunk_size, separator=separator, with_blank=with_blank)
        prompts = []
        # In a few vocabularies the tokens of a name depend on its neighbours. A chunk that is too long for that reason
        # is halved until nothing is cut off.
        waiting = chunks[::-1]
        while waiting:
            rows = waiting.pop()
            chunk = [names[row] for row in rows]
            prompt, is_cut = self._tokenize(prompt_from_names(chunk, rows, separator=separator, with_blank=with_blank))
            if is_cut:
                middle = len(rows) // 2
                waiting += [rows[middle:], rows[:middle]]
                continue
            for row, marked in zip(rows, prompt.phrase_token_map.any(dim=1).tolist(), strict=True):
                if not marked and names[row].strip():
                    raise InputError(
                        f"names[{row}]: no token of the prompt was found for {shorten(names[row])}; "
                        f"expected a name without long runs of white space"
                    )
            prompts.append(prompt)
        return prompts


def _first_found(char_to_token: Callable[[int], int | None], positions: Iterable[int]) -> int | None:
    for position in positions:
        token = char_to_token(position) if position >= 0 else None
        if token is not None:
            return token
    return None


def _token_range(span: CharSpan, char_to_token: Callable[[int], int | None]) -> tuple[int, int]:
    """Return the half-open range of the tokens of a character range, (0, 0) if it has none."""
    first = _first_found(char_to_token, range(*span))
    last = _first_found(char_to_token, reversed(range(*span)))
    return (0, 0) if first is None or last is None else (first, last + 1)


@functools.lru_cache(maxsize=4)
def _count_ids(encoder: Tokenizer) -> int:
    return 1 + max(encoder.get_vocab(with_added_tokens=True).values())


@functools.cache
def _packaged_tokenizer() -> tuple[Tokenizer, str]:
    """Build BERT's uncased tokenizer part by part, which needs no model files and works with any transformers version.

    Once in a process: it takes as long as all of a small model, and nobody changes it.

    Returns:
        The tokenizer and its mask token.
    """
    pieces = VOCABULARY_FILE.read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer, "[MASK]"


def _load_fast_tokenizer(path: str, allow_download: bool) -> tuple[Tokenizer, str | None]:
    """Return a tokenizer and its mask token, None if it has none."""
    key = "MODEL.TEXT_ENCODER.TOKENIZER"
    directory = resolve_pretrained(path, key, allow_download)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, use_fast=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{key}: no tokenizer could be read from {path!r} ({reason})") from error
    if not tokenizer.is_fast:
        raise InputError(f"{key}: {path!r} holds a {type(tokenizer).__name__}, expected a fast tokenizer")
    encoder = tokenizer.backend_tokenizer
    encoder.no_padding()
    encoder.no_truncation()
    return encoder, tokenizer.mask_token
