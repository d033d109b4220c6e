"""Prompts to token ids: the map from characters to tokens, chunks of a vocabulary, other tokenizers."""

import hashlib
import json
import multiprocessing
import pickle

import pytest
import torch
from conftest import ASSETS
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from glipv2_d2.prompts.builder import clean_name, prompt_from_caption, prompt_from_names
from glipv2_d2.prompts.tokenizer import VOCABULARY_FILE, PromptTokenizer, phrase_token_map

POSITIVE_MAPS = json.loads((ASSETS / "parity" / "text" / "positive_maps.json").read_text())["cases"]
CLASS_PROMPTS = json.loads((ASSETS / "parity" / "text" / "class_prompts.json").read_text())

# Each is one word piece.
SHORT_NOUNS = ["cat", "dog", "bus", "cow", "car"]
ADJECTIVES = ["red", "old", "new", "big", "small", "black", "white", "young", "long", "short"]

some_name = st.text(alphabet="abc_(). \t-é😀東", min_size=1, max_size=10)


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer()


def byte_level_folder(folder, more_pieces=(), merges=(), **special_tokens):
    """Save a tokenizer of another family: bytes instead of word pieces, <s> and </s> around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: row for row, piece in enumerate(["<s>", "<pad>", "</s>", *alphabet, *more_pieces])}
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special_tokens}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens)
    fast.save_pretrained(folder)
    return str(folder)


# --- characters to tokens ---------------------------------------------------------------------------------------------


def test_phrase_of_two_word_pieces_marks_both_tokens():
    # "a skateboard" -> [CLS] a skate ##board [SEP] [PAD]; "skateboard" is characters 2..11.
    char_to_token = {0: 1, **dict.fromkeys(range(2, 7), 2), **dict.fromkeys(range(7, 12), 3)}
    token_map = phrase_token_map([[(2, 12)]], char_to_token.get, num_tokens=6)
    assert token_map.tolist() == [[False, False, True, True, False, False]]


def expected_rows(case):
    return [set(row) for row in case["expected"]["collated_rows"]]


@pytest.mark.parametrize(
    "case", [case for case in POSITIVE_MAPS if "raises" not in case["expected"]], ids=lambda case: case["why"][:40]
)
def test_token_map_of_spans_is_the_official_one(case, tokenizer):
    # Spans that a prompt refuses are given to the map itself, as a file might hold them.
    characters = tokenizer(prompt_from_caption(case["caption"], [[(i, i + 1)] for i in range(len(case["caption"]))]))
    assert characters.input_ids.tolist() == case["input_ids"]
    char_to_token = dict(characters.phrase_token_map.nonzero().tolist())
    # A white space marks no token itself, so that the map of single characters is the tokenizer's own.
    for index, character in enumerate(case["caption"]):
        assert character.strip() or index not in char_to_token
    token_map = phrase_token_map(case["tokens_positive"], char_to_token.get, len(case["input_ids"]))
    assert [set(row.nonzero().flatten().tolist()) for row in token_map] == expected_rows(case)


def fits_a_prompt(case):
    spans = [span for phrase in case["tokens_positive"] for span in phrase]
    return "raises" not in case["expected"] and all(0 <= b < e <= len(case["caption"]) for b, e in spans)


@pytest.mark.parametrize("case", list(filter(fits_a_prompt, POSITIVE_MAPS)), ids=lambda case: case["why"][:40])
def test_tokenized_caption_is_the_official_one(case, tokenizer):
    prompt = tokenizer(prompt_from_caption(case["caption"], case["tokens_positive"]))
    assert prompt.input_ids.tolist() == case["input_ids"]
    assert prompt.input_ids.dtype == torch.int64 and prompt.phrase_token_map.dtype == torch.bool
    assert [set(row.nonzero().flatten().tolist()) for row in prompt.phrase_token_map] == expected_rows(case)


def test_span_that_ends_at_character_zero_is_an_error():
    # Officially an overflow error: character -1 is looked up.
    with pytest.raises(ValueError, match=r"phrase_spans\[1\]: the range \(0, 0\) ends before"):
        phrase_token_map([[], [(0, 0)]], {0: 1}.get, num_tokens=3)


def test_characters_before_the_caption_have_no_token():
    # The only character of the span has no token; the two before it do not exist and must not wrap around.
    assert not phrase_token_map([[(0, 1)]], {-1: 2, -2: 1, 1: 1}.get, num_tokens=3).any()


def test_no_phrases_make_a_map_without_rows(tokenizer):
    prompt = tokenizer(prompt_from_caption("a dog", []))
    assert prompt.phrase_token_map.shape == (0, 4)
    assert prompt.category_ids.shape == (0,) and prompt.category_ids.dtype == torch.int64


# --- vocabularies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [case for case in CLASS_PROMPTS["evaluation_prompts"] if "tokens" in case and len(case["tokens"]) <= 256],
    ids=lambda case: case["why"][:40],
)
def test_tokens_of_names_are_the_official_ones(case, tokenizer):
    # Names that clean to nothing are refused here; their neighbours keep what they have officially.
    words = [row for row, text in enumerate(case["cleaned"]) if text]
    caption, spans = case["caption"], [[case["spans"][row]] for row in words]
    prompt = tokenizer(prompt_from_caption(caption, spans, category_ids=[case["labels"][row] for row in words]))
    found = {
        str(label): row.nonzero().flatten().tolist()
        for label, row in zip(prompt.category_ids.tolist(), prompt.phrase_token_map)
    }
    assert found == case["label_to_tokens"]
    assert len(prompt) == len(case["tokens"])


@pytest.mark.parametrize("case", CLASS_PROMPTS["demo_prompts"], ids=lambda case: case["why"])
def test_names_of_the_official_demo_have_its_tokens(case, tokenizer):
    spans = [[span] if span[0] < span[1] else [] for span in case["spans"]]
    prompt = tokenizer(prompt_from_caption(case["caption"], spans))
    assert [row.nonzero().flatten().tolist() for row in prompt.phrase_token_map] == list(
        case["label_to_tokens"].values()
    )


def test_vocabulary_within_the_limit_is_one_prompt(tokenizer):
    case = CLASS_PROMPTS["evaluation_prompts"][0]
    (prompt,) = tokenizer.tokenize_names(case["class_names"])
    assert len(prompt) == len(case["tokens"]) == 194
    assert prompt.category_ids.tolist() == list(range(len(case["class_names"])))
    assert prompt.phrases == tuple(case["class_names"])


def test_chunk_is_filled_to_the_last_token():
    # Five names of one piece and four full stops are nine tokens, [CLS] and [SEP] eleven.
    names = ["cat", "dog", "bus", "cow", "car", "bird"]
    assert PromptTokenizer(max_tokens=11).chunk_names(names) == [[0, 1, 2, 3, 4], [5]]
    assert PromptTokenizer(max_tokens=10).chunk_names(names) == [[0, 1, 2, 3], [4, 5]]
    assert [len(prompt) for prompt in PromptTokenizer(max_tokens=11).tokenize_names(names)] == [11, 3]


def test_chunk_size_cuts_as_the_official_evaluation_does(tokenizer):
    names = [f"name{i}" for i in range(10)]
    assert [len(rows) for rows in tokenizer.chunk_names(names, chunk_size=4)] == [4, 4, 2]
    assert sum(tokenizer.chunk_names(names, chunk_size=4), []) == list(range(10))
    assert [len(rows) for rows in tokenizer.chunk_names(names, chunk_size=10)] == [10]


def test_chunk_closes_at_the_token_limit_before_the_chunk_size():
    assert PromptTokenizer(max_tokens=6).chunk_names(["cat", "dog", "bus"], chunk_size=3) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "names, error, message",
    [
        ([], ValueError, "names: expected at least one"),
        (["cat", "cat"], ValueError, "rows 0 and 1 are both 'cat'"),
        (["cat", "(x)"], ValueError, r"names\[1\]: nothing is left"),
        (["cat", None], TypeError, r"names\[1\]: expected a string"),
        (["cat", "\u200b"], ValueError, r"names\[1\]: .* has 0 tokens, expected 1 to 254"),
        (["cat", "dog " * 255], ValueError, r"names\[1\]: 'dog .*\.\.\.' has 255 tokens, expected 1 to 254 \(MODEL"),
        (["cat", "traffic\nlight"], ValueError, r"names\[1\]: 'traffic\\nlight' holds a line break"),
        (["cat", " " * 9 + "dog"], ValueError, r"names\[1\]: no token of the prompt was found for"),
    ],
)
def test_vocabularies_without_prompts_are_refused(names, error, message, tokenizer):
    with pytest.raises(error, match=message) as caught:
        tokenizer.tokenize_names(names)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_name_of_exactly_the_limit_is_a_prompt_alone(tokenizer):
    prompts = tokenizer.tokenize_names(["cat", "dog " * 254, "bus"])
    assert [len(prompt) for prompt in prompts] == [3, 256, 3]


def test_name_may_hold_the_separator_or_a_tab(tokenizer):
    (prompt,) = tokenizer.tokenize_names(["st. bernard", "traffic\tlight"])
    # [CLS] st . bernard . traffic light [SEP]
    assert [row.nonzero().flatten().tolist() for row in prompt.phrase_token_map] == [[1, 2, 3], [5, 6]]


def check_large_vocabulary(tokenizer, names, chunk_size):
    """Every name is in one prompt, whole, under its own id; no prompt passes a limit."""
    prompts = tokenizer.tokenize_names(names, chunk_size=chunk_size)
    assert sum((list(prompt.phrases) for prompt in prompts), []) == names
    assert torch.equal(torch.cat([prompt.category_ids for prompt in prompts]), torch.arange(len(names)))
    assert max(len(prompt) for prompt in prompts) <= tokenizer.max_tokens
    counts = [tokenizer.count_tokens(clean_name(name)) for name in names]
    assert torch.equal(torch.cat([prompt.phrase_token_map.sum(dim=1) for prompt in prompts]), torch.tensor(counts))
    return prompts


def test_the_names_of_lvis_are_31_chunks_of_40(tokenizer):
    names = list(MetadataCatalog.get("lvis_v1_val").thing_classes)
    sizes = [len(prompt.phrases) for prompt in check_large_vocabulary(tokenizer, names, 40)]
    assert sizes == [40] * 30 + [3]
    # By the count of tokens alone more names share a prompt.
    assert len(check_large_vocabulary(tokenizer, names, 0)) < 31


@pytest.mark.parametrize("chunk_size", [0, 40])
def test_vocabulary_of_5000_names_loses_none(tokenizer, chunk_size):
    names = [
        f"{adjective} {noun} {number}" for adjective in ADJECTIVES for noun in SHORT_NOUNS for number in range(100)
    ]
    assert len(names) == 5000
    prompts = check_large_vocabulary(tokenizer, names, chunk_size)
    assert chunk_size == 0 or len(prompts) == 125


def test_names_are_counted_once_however_many_there_are():
    # Each name is read alone, with its separator and in its prompt, by the tokenizer that does the work.
    tokenizer = PromptTokenizer()
    names = [f"kind {number}" for number in range(5_000)]
    encoder, characters = tokenizer._encoder, []

    class Counting:
        def __getattr__(self, name):
            return getattr(encoder, name)

        def encode(self, text, **options):
            characters.append(len(text))
            return encoder.encode(text, **options)

    tokenizer._encoder = Counting()
    prompts = tokenizer.tokenize_names(names)
    assert sum(len(prompt.phrases) for prompt in prompts) == 5_000
    assert sum(characters) <= 3 * sum(len(name) + 2 for name in names)


def test_chunk_whose_tokens_depend_on_their_neighbours_is_halved_and_not_cut(tmp_path):
    merges = [("\u0120", "d"), ("d", "o"), ("do", "g"), ("do", "t"), ("do", "r")]
    folder = byte_level_folder(tmp_path, ["".join(merge) for merge in merges], merges)
    tokenizer = PromptTokenizer(folder, max_tokens=2 + 7)
    # Alone each name is one token, three with its separator. But after a space its first letter goes to the space.
    names = ["dog", "dot", "dor"]
    assert tokenizer.chunk_names(names) == [[0, 1, 2]]
    assert tokenizer.count_tokens("dog. dot. dor") == 1 + 1 + 3 + 1 + 3
    prompts = tokenizer.tokenize_names(names)
    assert [prompt.phrases for prompt in prompts] == [("dog",), ("dot", "dor")]
    assert [prompt.category_ids.tolist() for prompt in prompts] == [[0], [1, 2]]
    assert [len(prompt) for prompt in prompts] == [3, 2 + 1 + 1 + 3]
    assert prompts[1].phrase_token_map.sum(dim=1).tolist() == [1, 3]


@pytest.fixture(scope="module", params=[3, 9, 20])
def short_tokenizer(request):
    return PromptTokenizer(max_tokens=request.param)


@settings(max_examples=60)
@given(names=st.lists(some_name, min_size=1, max_size=12, unique=True), chunk_size=st.integers(0, 4))
def test_chunks_hold_every_name_once_and_fit(short_tokenizer, names, chunk_size):
    tokenizer = short_tokenizer
    try:
        prompts = tokenizer.tokenize_names(names, chunk_size=chunk_size)
    except ValueError as error:
        assert str(error).startswith("names[") and "\n" not in str(error)
        return
    assert sum((prompt.phrases for prompt in prompts), ()) == tuple(names)
    for prompt in prompts:
        assert len(prompt) <= tokenizer.max_tokens
        assert len(prompt.phrases) <= (chunk_size or len(names))
        assert prompt.phrase_token_map.any(dim=1).all()
        # No token belongs to two names, and none of the special tokens to any.
        assert prompt.phrase_token_map.sum(dim=0).max() <= 1
        assert not prompt.phrase_token_map[:, [0, -1]].any()


@settings(max_examples=100)
@given(names=st.lists(some_name.filter(lambda name: clean_name(name).strip()), min_size=1, max_size=5))
def test_tokens_of_a_prompt_are_those_of_its_names_and_separators(tokenizer, names):
    counts = [tokenizer.count_tokens(clean_name(name) + ". ") for name in names]
    assert tokenizer.count_tokens(prompt_from_names(names).caption) == sum(counts) - 1


# --- the tokenizer itself ---------------------------------------------------------------------------------------------


def test_packaged_vocabulary_is_that_of_bert_base_uncased():
    digest = hashlib.sha256(VOCABULARY_FILE.read_bytes()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_vocabulary_size_bounds_the_ids(tokenizer):
    assert tokenizer.vocab_size == 30522


def test_mask_token_is_that_of_the_vocabulary(tmp_path, tokenizer):
    assert tokenizer.mask_id == 103
    assert PromptTokenizer(byte_level_folder(tmp_path, ["!mask!"], mask_token="!mask!")).mask_id == 259
    assert pickle.loads(pickle.dumps(tokenizer)).mask_id == 103


def test_tokenizer_without_mask_token_is_refused_with_its_key(tmp_path):
    tokenizer = PromptTokenizer(byte_level_folder(tmp_path))
    with pytest.raises(
        ValueError, match="MODEL.TEXT_ENCODER.TOKENIZER: '.*' has no mask token, expected one"
    ) as caught:
        _ = tokenizer.mask_id
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("last_token", "mask_id"), [("<|endoftext|>", 49404), ("another", None)], ids=["CLIP", "of the same size"]
)
def test_vocabulary_of_clip_masks_with_the_rare_token_of_the_official_code(tmp_path, last_token, mask_id):
    # 259 pieces, more of them, and the end of the text with the last of 49,408 ids, as in CLIP.
    pieces = [f"piece {row}" for row in range(49408 - 259 - 1)]
    tokenizer = PromptTokenizer(byte_level_folder(tmp_path, [*pieces, last_token]))
    assert tokenizer.vocab_size == 49408
    if mask_id is None:
        with pytest.raises(ValueError, match="has no mask token"):
            _ = tokenizer.mask_id
    else:
        assert tokenizer.mask_id == mask_id


def test_counts_leave_out_special_tokens_and_know_no_limit(tokenizer):
    assert tokenizer.count_tokens("hair drier") == 3  # hair dr ##ier
    assert [tokenizer.count_tokens("dog " * 400) for _ in range(2)] == [400, 400]
    assert tokenizer.count_tokens("") == 0


def test_limit_cuts_the_text_and_keeps_the_special_tokens():
    prompt = PromptTokenizer(max_tokens=4)(prompt_from_names(["cat", "dog"]))
    assert prompt.input_ids.tolist() == [101, 4937, 1012, 102]
    assert prompt.phrase_token_map.tolist() == [[False, True, False, False], [False] * 4]


@pytest.mark.parametrize("max_tokens", [-1, 0, 2])
def test_limit_without_room_for_text_is_refused(max_tokens):
    with pytest.raises(ValueError, match=f"MODEL.TEXT_ENCODER.MAX_TOKENS: {max_tokens} leaves no room"):
        PromptTokenizer(max_tokens=max_tokens)


def test_config_names_tokenizer_and_limit(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.TEXT_ENCODER.TOKENIZER = byte_level_folder(tmp_path)
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 5
    tokenizer = PromptTokenizer.from_config(tiny_cfg)
    assert tokenizer.max_tokens == 5
    assert len(tokenizer(prompt_from_names(["longer than that"]))) == 5


def test_other_tokenizer_brings_its_own_special_tokens(tmp_path):
    tokenizer = PromptTokenizer(byte_level_folder(tmp_path))
    assert tokenizer.vocab_size == 259
    prompt = tokenizer(prompt_from_names(["ab", "c"]))
    # <s> a b . space c </s>
    assert prompt.input_ids[[0, -1]].tolist() == [0, 2] and len(prompt) == 7
    assert [row.nonzero().flatten().tolist() for row in prompt.phrase_token_map] == [[1, 2], [5]]


def test_folder_with_a_wordpiece_vocabulary_equals_the_packaged_one(tmp_path, tokenizer):
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY_FILE.read_bytes())
    settings_of_folder = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 8}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_of_folder))
    other = PromptTokenizer(str(tmp_path))
    for case in POSITIVE_MAPS:
        prompt = prompt_from_caption(case["caption"], [])
        assert other(prompt).input_ids.tolist() == tokenizer(prompt).input_ids.tolist()


def test_padding_and_limit_stored_with_a_tokenizer_are_not_used(tmp_path):
    folder = byte_level_folder(tmp_path)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=12)
    stored.save(str(tmp_path / "tokenizer.json"))
    assert len(PromptTokenizer(folder)(prompt_from_names(["abcdef"]))) == 8


def test_missing_tokenizer_is_named_with_its_key(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.TEXT_ENCODER.TOKENIZER: '.*absent' is neither"):
        PromptTokenizer(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="MODEL.TEXT_ENCODER.TOKENIZER: no tokenizer could be read") as caught:
        PromptTokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_tokenizer_survives_pickling(tokenizer):
    prompt = prompt_from_names(["cat", "hair drier"])
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy(prompt).input_ids.tolist() == tokenizer(prompt).input_ids.tolist()
    assert copy.max_tokens == tokenizer.max_tokens


def test_tokenizers_of_one_vocabulary_keep_their_own_limits():
    prompt, (short, long) = prompt_from_names(SHORT_NOUNS), (PromptTokenizer(max_tokens=limit) for limit in (4, 64))
    assert [len(one(prompt)) for one in (short, long, short)] == [4, 1 + 2 * len(SHORT_NOUNS), 4]
    assert short.vocab_size == long.vocab_size == len(VOCABULARY_FILE.read_text().splitlines())


def _ids_in_child(tokenizer, prompt, queue):
    queue.put(tokenizer(prompt).input_ids.tolist())


def test_tokenizer_used_before_a_fork_works_after_it(tokenizer, capfd):
    prompt = prompt_from_names(["cat", "hair drier"])
    expected = tokenizer(prompt).input_ids.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_ids_in_child, args=(tokenizer, prompt, queue))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0 and queue.get() == expected
    # The library warns on stderr when its threads were used before the fork.
    assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err


def test_reserved_ids_are_those_without_a_text_in_the_vocabulary_of_bert():
    # [unused0] to [unused98] after the padding, the other 895 after [MASK].
    assert PromptTokenizer().reserved_ids == (*range(1, 100), *range(104, 999))


@pytest.mark.parametrize("name", ["[SEP]", "[MASK]", "[PAD]", "[CLS] dog", "a [UNK]", "<s>", "<|endoftext|>"])
def test_control_tokens_in_a_text_are_text(name):
    tokenizer = PromptTokenizer()
    (prompt,) = tokenizer.tokenize_names(["cat", name])
    special = [index for index in prompt.input_ids.tolist() if index in tokenizer.special_ids]
    assert special == [tokenizer.start_id, tokenizer.end_id]
    assert prompt.phrases == ("cat", name) and prompt.phrase_token_map.any(dim=1).all()
    assert tokenizer.count_tokens(f"cat. {name}") == len(prompt.input_ids) - 2


@given(st.text(alphabet=st.characters(), min_size=1, max_size=30).filter(str.strip))
def test_any_text_is_tokenized_without_control_tokens(tokenizer, text):
    ids = tokenizer(prompt_from_caption(text, [])).input_ids.tolist()
    assert ids[0] == tokenizer.start_id and ids[-1] == tokenizer.end_id
    assert not {tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id} & set(ids[1:-1])
    assert all(piece in text for piece in tokenizer.unknown_pieces(text))
