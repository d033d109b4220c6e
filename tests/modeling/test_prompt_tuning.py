import pytest
import torch

from glipv2_d2.errors import InputError
from glipv2_d2.modeling.prompt_tuning import PromptTuner, fingerprint
from glipv2_d2.structures import LanguageFeatures


def make_language(lengths=(3, 2), width=4):
    """N prompts of random features, those of the padding zero in ``embedded``."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(lengths), max(lengths), width, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return LanguageFeatures(hidden, hidden * mask.unsqueeze(-1), mask)


def test_a_new_table_has_a_row_of_zeros_for_each_place_and_changes_nothing():
    tuner, language = PromptTuner(4, 5), make_language()
    assert {name: tuple(one.shape) for name, one in tuner.named_parameters()} == {"embeddings": (5, 4)}
    tuned = tuner(language)
    assert torch.equal(tuned.hidden, language.hidden) and torch.equal(tuned.embedded, language.embedded)


def test_each_token_gets_the_row_of_its_place_in_what_is_fused_and_what_is_read_before():
    tuner, language = PromptTuner(4, 5), make_language()
    with torch.no_grad():
        tuner.embeddings.copy_(torch.arange(20.0).view(5, 4))
    tuned = tuner(language)
    for image, length in enumerate((3, 2)):
        for place in range(length):
            row = torch.arange(4.0) + 4 * place
            torch.testing.assert_close(tuned.hidden[image, place], language.hidden[image, place] + row)
            torch.testing.assert_close(tuned.embedded[image, place], language.embedded[image, place] + row)
    # The padding of the second prompt stays zero.
    assert not tuned.embedded[1, 2].any()
    assert torch.equal(tuned.mask, language.mask)


def test_rows_that_no_prompt_reaches_get_no_gradient():
    tuner = PromptTuner(4, 5)
    tuner(make_language()).hidden.sum().backward()
    # Two prompts have a first and second token, and a third, of which one is padding that nothing should read.
    assert tuner.embeddings.grad[:, 0].tolist() == [2, 2, 2, 0, 0]


def test_a_prompt_as_long_as_the_table_fits_and_a_longer_one_is_an_error():
    assert PromptTuner(4, 3)(make_language()).hidden.shape == (2, 3, 4)
    with pytest.raises(ValueError, match="max_tokens: expected at least the 3 tokens .* found 2"):
        PromptTuner(4, 2)(make_language())


def test_a_table_without_rows_is_an_error():
    with pytest.raises(ValueError, match="max_tokens: expected at least 1, found 0"):
        PromptTuner(4, 0)


def test_each_prompt_has_its_own_table_and_another_prompt_none():
    tuner = PromptTuner(4, 5, num_prompts=3)
    tuner.bind([[7, 8], [9]])
    with torch.no_grad():
        tuner.embeddings.copy_(torch.arange(15.0).unsqueeze(1).expand(15, 4))
    language = make_language()._replace(fingerprints=(fingerprint([9]), fingerprint([7, 8])))
    added = tuner(language).hidden - language.hidden
    torch.testing.assert_close(added[..., 0], torch.tensor([[5.0, 6.0, 7.0], [0.0, 1.0, 2.0]]))
    for ids in ([8, 7], [7], [78]):
        foreign = language._replace(fingerprints=(fingerprint([9]), fingerprint(ids)))
        with pytest.raises(InputError, match="prompts: expected the prompt that was tuned"):
            tuner(foreign)
    tuner.bind([[7, 8], [9]])
    with pytest.raises(InputError, match="DATASETS.TRAIN: expected the prompts"):
        tuner.bind([[9], [7, 8]])
    with pytest.raises(InputError, match="NUM_PROMPTS: expected 4, .* found 3"):
        tuner.bind([[1], [2], [3], [4]])


def test_a_table_of_sentences_is_for_any_prompt():
    tuner = PromptTuner(4, 5)
    tuner.bind(None)
    language = make_language()._replace(fingerprints=(fingerprint([1]), fingerprint([2])))
    assert torch.equal(tuner(language).hidden, language.hidden)
