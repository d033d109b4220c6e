import json

import pytest
import torch
from prompt_samples import make_prompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def benchmark(load_tool):
    return load_tool("benchmark_vocabulary")


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_four_ways_run_over_the_same_chunks(benchmark, config, tmp_path, capsys, clock):
    file = tmp_path / "numbers.json"
    common = ["--config-file", config, "--size", "64", "64", "--repeat", "1", "--device", "cpu", "--json", str(file)]
    benchmark.main([*common, "--num-names", "7", "--chunk-size", "3", "--clock", clock])
    numbers = json.loads(file.read_text())
    assert (numbers["names"], numbers["chunks"], numbers["size"], numbers["clock"]) == (7, 3, [64, 64], clock)
    assert list(numbers["runs"]) == ["next image", "first image", "separate", "official"]
    assert all(row["seconds"] > 0 for row in numbers["runs"].values())
    printed = capsys.readouterr().out
    assert "of separate" in printed and "chunks: 3" in printed


def test_names_are_those_of_lvis_and_numbered_ones_after_them(benchmark):
    names = benchmark.make_names(2500)
    assert len(set(names)) == len(names) == 2500
    assert names[:1203] == benchmark.make_names(1203)
    assert names[1203] == f"{names[0]} 2" and names[2406] == f"{names[0]} 3"


def test_ways_differ_in_what_runs_how_often(benchmark, tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    model = benchmark.load_model(tiny_cfg)
    backbone, texts, widths, forms = [], [], [], []
    model.backbone.register_forward_hook(lambda *_: backbone.append(1))
    model.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    block = model.fusion_tower.blocks[0]
    block.fusion.register_forward_hook(lambda module, inputs, _: widths.append(inputs[1].shape[:2]))
    block.fusion.register_forward_hook(lambda module, *_: forms.append(module.form))
    inputs = {"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}
    ways = benchmark.run_ways(model, inputs, [make_prompt([1]), make_prompt([2])], 20)
    expected = {
        "first image": (1, 2, [(2, 4)], ["auto"]),
        "next image": (1, 0, [(2, 4)], ["auto"]),
        "separate": (2, 2, [(1, 3), (1, 4)], ["auto"] * 2),
        "official": (2, 2, [(1, 20)] * 2, ["plain"] * 2),
    }
    assert list(ways) == list(expected)
    found = {}
    with torch.no_grad():
        for way, run in ways.items():
            found[way] = run()
            assert (len(backbone), len(texts), [tuple(width) for width in widths], forms) == expected[way], way
            for calls in (backbone, texts, widths, forms):
                calls.clear()
    assert block.fusion.form == "auto"
    assert found["first image"] == found["next image"] > 0


def test_a_prompt_is_filled_up_with_tokens_of_no_phrase(benchmark):
    prompt = make_prompt([1], [2])
    filled = benchmark.fill_up(prompt, 9)
    assert filled.input_ids.tolist() == [*prompt.input_ids.tolist(), 0, 0, 0, 0, 0]
    assert torch.equal(filled.phrase_token_map[:, :4], prompt.phrase_token_map)
    assert filled.phrase_token_map.shape == (2, 9) and not filled.phrase_token_map[:, 4:].any()


@pytest.mark.parametrize("arguments", [["--num-names", "0"], ["--clock", "sun"], ["--size", "-1", "2"]])
def test_bad_arguments_are_refused(benchmark, config, arguments):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(["--config-file", config, *arguments])
