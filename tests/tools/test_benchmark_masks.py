"""The benchmark of the mask head: one map for each box costs a small part of all token maps, and is the same."""

import json

import pytest
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def benchmark(load_tool):
    return load_tool("benchmark_masks")


def test_both_forms_have_the_same_logits_and_gradients(benchmark):
    head, batch = benchmark.make_head(8, "cpu"), benchmark.make_batch(20, 9, 8, "cpu")
    weights = torch.randn(batch.targets.shape)
    logits = {name: form(head, batch) for name, form in benchmark.FORMS.items()}
    assert_close(logits["one map"], logits["all tokens"], atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad((each * weights).sum(), list(head.parameters())) for each in logits.values()]
    for one, other in zip(*gradients):
        assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_maps_may_start_from_the_pixels(benchmark):
    head, batch = benchmark.make_head(8, "cpu"), benchmark.make_batch(3, 9, 8, "cpu")
    pixels = head.enlarge(head.extract(batch.pooled))
    for form in benchmark.FORMS.values():
        assert_close(form(head, batch, pixels), form(head, batch))


def test_training_takes_less_than_a_tenth_of_the_memory_of_all_token_maps(benchmark):
    # A quarter of the channels and a quarter of the tokens: each box then needs a quarter of everything.
    head, batch = benchmark.make_head(64, "cpu"), benchmark.make_batch(100, 64, 64, "cpu")
    numbers = {form: benchmark.measure(form, head, batch, 1) for form in benchmark.FORMS}
    one, every = numbers["one map"], numbers["all tokens"]
    assert one["head_mib"] < every["head_mib"] / 10
    assert one["maps_mib"] < every["maps_mib"] / 10
    # The maps of all tokens before and after the clamp.
    assert every["maps_mib"] >= 2 * 100 * 64 * 28 * 28 * 4 / benchmark.MIB


def test_batch_is_as_asked(benchmark):
    batch = benchmark.make_batch(30, 5, 4, "cpu")
    assert batch.pooled.shape == (30, 4, 14, 14) and batch.targets.shape == (30, 28, 28)
    assert batch.token_map.shape == (30, 5) and set(batch.token_map.sum(1).tolist()) == {2}
    assert benchmark.make_batch(3, 1, 4, "cpu").token_map.all()


def test_numbers_are_printed_and_written(benchmark, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    benchmark.main(
        ["--boxes", "3", "--tokens", "5", "--dim", "8", "--device", "cpu", "--repeat", "2", "--json", str(file)]
    )
    numbers = json.loads(file.read_text())
    assert (numbers["boxes"], numbers["tokens"], numbers["dim"]) == (3, 5, 8)
    assert list(numbers["forms"]) == ["one map", "all tokens"]
    assert all(value > 0 for form in numbers["forms"].values() for value in form.values())
    printed = capsys.readouterr().out
    assert "head, MiB" in printed and "maps, MiB" in printed and "share" in printed


@pytest.mark.parametrize("arguments", [["--boxes", "0"], ["--dim", "-1"], ["--tokens", "many"]])
def test_bad_arguments_are_refused(benchmark, arguments):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)


def test_a_size_that_the_head_refuses_ends_in_one_line(benchmark):
    with pytest.raises(SystemExit, match="error: Residual: expected an even number of channels"):
        benchmark.main(["--boxes", "2", "--tokens", "3", "--dim", "7", "--device", "cpu"])
