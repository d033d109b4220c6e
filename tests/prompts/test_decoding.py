import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from glipv2_d2.prompts.decoding import decode_tokens
from glipv2_d2.prompts.tokenizer import VOCABULARY_FILE


@pytest.fixture(scope="module")
def encoder():
    """BERT's vocabulary, as the package reads captions with it."""
    pieces = VOCABULARY_FILE.read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def ids_of(encoder, text):
    return encoder.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "text",
    [
        "a man riding a horse",
        "a dog, a cat and a bird.",
        "a man's t-shirt doesn't say it's 5 o'clock",
        "they're here, i've seen them! really?",
        "the dogs' bowls",
        "an all-you-can-eat buffet, and/or more",
        "at 2:30 it costs $5.50 or 1,000; 50% off",
        'the sign says "stop", not "go" (or so).',
        '"stop" [now]',
        "a skateboarder unbelievabley fast",
        "#1, the best",
        "",
    ],
)
def test_text_is_written_as_it_was_read(encoder, text):
    assert decode_tokens(encoder, ids_of(encoder, text)).text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("black - and - white", "black-and-white"), ("a dog -", "a dog -"), ("- a dog", "- a dog"), ("A Dog .", "a dog.")],
)
def test_marks_get_no_space_that_english_does_not_write(encoder, text, expected):
    assert decode_tokens(encoder, ids_of(encoder, text)).text == expected


def test_each_token_knows_its_characters(encoder):
    ids = [101, *ids_of(encoder, "two unbelievabley t-shirts"), 102]
    decoded = decode_tokens(encoder, ids)
    assert decoded.text == "two unbelievabley t-shirts"
    found = [span if span is None else decoded.text[slice(*span)] for span in decoded.token_spans]
    assert found == [None, "two", "unbelievable", "y", "t", "-", "shirts", None]
    assert decoded.token_spans[2:4] == [(4, 16), (16, 17)]


def test_special_tokens_are_left_out_and_end_a_word(encoder):
    piece = encoder.token_to_id("##s")
    dog = encoder.token_to_id("dog")
    assert decode_tokens(encoder, [101, dog, piece, 103, piece, 102]).text == "dogs s"
    assert decode_tokens(encoder, [piece, dog]).text == "s dog"
    assert decode_tokens(encoder, [101, 102]) == ("", [None, None])
    assert decode_tokens(encoder, []) == ("", [])


def clip_like():
    """A vocabulary of bytes in which "</w>" ends a word, as CLIP's."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "do", "dog</w>", "<|endoftext|>"]
    model = BPE(
        {piece: row for row, piece in enumerate(pieces)},
        [("d", "o"), ("do", "g</w>")],
        end_of_word_suffix="</w>",
        unk_token="<|endoftext|>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def test_pieces_that_end_a_word_say_so():
    encoder = clip_like()
    ids = [encoder.token_to_id(piece) for piece in ("dog</w>", "do", "s</w>", ",</w>", "a</w>", "<|endoftext|>")]
    decoded = decode_tokens(encoder, ids)
    assert decoded.text == "dog dos, a"
    assert decoded.token_spans == [(0, 3), (4, 6), (6, 7), (7, 8), (9, 10), None]


def test_a_character_of_two_pieces_is_written_once():
    encoder = clip_like()
    # In UTF-8 "é" is C3 A9, which the alphabet of bytes writes as "Ã" and "©".
    ids = [encoder.token_to_id(piece) for piece in ("a", "Ã", "©</w>", "dog</w>")]
    decoded = decode_tokens(encoder, ids)
    assert decoded.text == "aé dog"
    assert decoded.token_spans[0] == (0, 1) and decoded.token_spans[3] == (3, 6)
    assert (1, 2) in decoded.token_spans[1:3] and None in decoded.token_spans[1:3]


def test_half_a_character_breaks_nothing():
    encoder = clip_like()
    decoded = decode_tokens(encoder, [encoder.token_to_id("Ã"), encoder.token_to_id("dog</w>")])
    assert decoded.text == "\ufffddog" and decoded.token_spans == [(0, 1), (1, 4)]


def test_ids_and_tokenizers_that_cannot_be_read_are_refused(encoder):
    with pytest.raises(ValueError, match=r"input_ids\[1\] is 99999"):
        decode_tokens(encoder, [101, 99999])
    with pytest.raises(ValueError, match="MODEL.TEXT_ENCODER.TOKENIZER: found a Unigram"):
        decode_tokens(Tokenizer(Unigram([("a", 0.0)], 0)), [0])
    with pytest.raises(ValueError, match="found a BPE without a mark"):
        decode_tokens(Tokenizer(BPE({"a": 0}, [])), [0])
