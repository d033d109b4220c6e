import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def benchmark(load_tool):
    return load_tool("benchmark")


def run(benchmark, config, tmp_path, *arguments) -> dict:
    file = tmp_path / "numbers.json"
    common = ["--config-file", config, "--size", "64", "96", "--repeat", "1", "--device", "cpu", "--json", str(file)]
    benchmark.main([*common, *arguments])
    return json.loads(file.read_text())


def test_both_forms_are_measured_module_by_module(benchmark, config, tmp_path, capsys):
    numbers = run(benchmark, config, tmp_path, "--prompt", "cat. traffic light.")
    assert numbers["names"] == 2 and numbers["images"] == [1, 3, 64, 96]
    assert list(numbers["forms"]) == ["plain/torchvision", "folded/gather"]
    for rows in numbers["forms"].values():
        assert list(rows) == [
            *("backbone", "text encoder", "fusion", "language layer", "dyconv", "head"),
            *("post-processing", "other", "total"),
        ]
        modules = [row for module, row in rows.items() if module != "total"]
        assert rows["total"]["gmac"] == pytest.approx(sum(row["gmac"] for row in modules))
        assert rows["total"]["memory_mib"] >= max(row["memory_mib"] for row in modules) > 0
        assert all(rows[module]["gmac"] > 0 for module in ("backbone", "text encoder", "fusion", "dyconv", "head"))
    plain, folded = numbers["forms"].values()
    assert folded["fusion"]["gmac"] < plain["fusion"]["gmac"]
    assert folded["backbone"]["gmac"] == plain["backbone"]["gmac"]
    printed = capsys.readouterr().out
    assert "language layer" in printed and "GMAC" in printed and "backward" not in printed


def test_training_has_losses_and_backward_times(benchmark, config, tmp_path, capsys):
    numbers = run(benchmark, config, tmp_path, "--num-names", "3", "--train", "--batch", "2", "--forms", "auto/auto")
    (rows,) = numbers["forms"].values()
    assert "losses" in rows and "post-processing" not in rows
    assert all(rows[module]["backward_s"] > 0 for module in ("backbone", "text encoder", "fusion", "dyconv", "head"))
    assert "backward, s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-names", "5000"], "--num-names: expected at most 1203, found 5000"),
        (["--prompt", ". ."], "--prompt: expected names with full stops between them"),
        (["--train", "--num-names", "200"], "--train: the names make"),
    ],
)
def test_bad_requests_end_in_one_line(benchmark, config, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        run(benchmark, config, tmp_path, *arguments)


@pytest.mark.parametrize(
    "arguments", [["--forms", "fast/gather"], ["--forms", "plain"], ["--repeat", "0"], ["--size", "-1", "2"]]
)
def test_bad_arguments_are_refused(benchmark, config, tmp_path, arguments):
    with pytest.raises(SystemExit):
        run(benchmark, config, tmp_path, *arguments)
