"""The benchmark of the contrastive loss: memory that grows with the numbers of regions and words, not of pairs."""

import json
import sys

import pytest
import torch
from torch.testing import assert_close

from glipv2_d2.modeling.losses.contrastive_loss import contrastive_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def benchmark(load_tool):
    return load_tool("benchmark_contrastive")


def extra_mib(benchmark, form, regions, words):
    batch = benchmark.make_batch(regions, words, 16, "cpu")
    return benchmark.measure(form, batch, torch.device("cpu"), 1)["extra_mib"]


def test_memory_grows_with_regions_and_words_and_not_with_pairs(benchmark, monkeypatch):
    monkeypatch.setattr("glipv2_d2.modeling.losses.masked_logsumexp.CHUNK_PAIRS", 2**13)
    small, large = (extra_mib(benchmark, "chunked", 256 * size, 128 * size) for size in (1, 4))
    assert large < 5 * small
    # A matrix of all pairs is 2 MiB.
    assert large < 1.5 and extra_mib(benchmark, "dense", 1024, 512) > 4


def test_batch_is_as_asked_and_all_regions_have_a_word(benchmark):
    batch = benchmark.make_batch(50, 300, 8, "cpu")
    regions, words = batch[0].local, batch[1].local
    assert regions.vectors.shape == (50, 8) and words.vectors.shape == (300, 8)
    assert (regions.categories < 0).any() and (regions.categories >= 0).any()
    assert set(batch[2][1].tolist()) <= set(batch[3][1].tolist())
    assert_close(contrastive_loss(*batch, "chunked"), contrastive_loss(*batch, "dense"), atol=1e-5, rtol=1e-5)


def test_forms_are_measured_in_processes_of_their_own(benchmark, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    sizes = ["--regions", "40", "--words", "30", "--dim", "8", "--device", "cpu"]
    benchmark.main([*sizes, "--form", "chunked", "--json", str(file)])
    numbers = json.loads(file.read_text())
    assert (numbers["regions"], numbers["words"], numbers["dim"]) == (40, 30, 8)
    assert list(numbers["forms"]) == ["chunked"]
    assert all(value > 0 for value in numbers["forms"]["chunked"].values())
    printed = capsys.readouterr().out
    assert "extra, MiB" in printed and "chunked" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux only")
def test_a_form_that_does_not_run_here_ends_in_one_line(benchmark):
    sizes = ["--regions", "4", "--words", "4", "--dim", "8", "--device", "cpu"]
    with pytest.raises(SystemExit, match="error: masked_logsumexp: form 'triton' needs tensors on a CUDA device"):
        benchmark.main(["--alone", *sizes, "--form", "triton"])


def test_the_benchmark_ends_with_the_process_of_a_form(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark.sys, "executable", "false")
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--regions", "4", "--words", "4", "--dim", "8", "--device", "cpu", "--form", "chunked"])
    assert ended.value.code == 1


@pytest.mark.parametrize("arguments", [["--form", "fast"], ["--regions", "0"], ["--dim", "-1"]])
def test_bad_arguments_are_refused(benchmark, arguments):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
