"""The benchmarks: what each of them runs, the numbers that have to hold on any machine, and bad requests."""

import json
import os

import benchmark
import pytest
import torch
from benchmarks import compare, contrastive, losses, masks, measurement, shortlist, vocabulary
from drawn_images import register_drawn
from prompt_samples import make_prompt
from torch.testing import assert_close

from glipv2_d2.modeling.losses.contrastive_loss import contrastive_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def run(tmp_path, config):
    """Run a subcommand on the CPU; return the numbers it writes."""

    def run_subcommand(command: str, *arguments: str) -> dict:
        file = tmp_path / "numbers.json"
        common = ["--device", "cpu", "--json", str(file)]
        common += [] if benchmark.SUBCOMMANDS[command].CONFIG_KEYS is None else ["--config-file", config]
        benchmark.main([command, *common, *arguments])
        return json.loads(file.read_text())

    return run_subcommand


MODEL = ("model", "--size", "64", "96", "--repeat", "1")
VOCABULARY = ("vocabulary", "--size", "64", "64", "--repeat", "1")
CONTRASTIVE = ("contrastive", "--regions", "40", "--words", "30", "--dim", "8")


# --- model ------------------------------------------------------------------------------------------------------------


def test_both_forms_are_measured_module_by_module(run, capsys):
    numbers = run(*MODEL, "--prompt", "cat. traffic light.")
    assert numbers["names"] == 2 and numbers["images"] == [1, 3, 64, 96]
    assert list(numbers["results"]) == ["plain/torchvision", "blocks/gather"]
    for rows in numbers["results"].values():
        assert list(rows) == [
            *("backbone", "text encoder", "fusion", "language layer", "dyconv", "head"),
            *("post-processing", "other", "total"),
        ]
        modules = [row for module, row in rows.items() if module != "total"]
        assert rows["total"]["gmac"] == pytest.approx(sum(row["gmac"] for row in modules))
        assert rows["total"]["memory_mib"] >= max(row["memory_mib"] for row in modules) > 0
        assert all(rows[module]["gmac"] > 0 for module in ("backbone", "text encoder", "fusion", "dyconv", "head"))
    plain, folded = numbers["results"].values()
    assert folded["fusion"]["gmac"] < plain["fusion"]["gmac"]
    assert folded["backbone"]["gmac"] == plain["backbone"]["gmac"]
    printed = capsys.readouterr().out
    assert "language layer" in printed and "GMAC" in printed and "backward" not in printed


def test_training_has_losses_and_backward_times(run, capsys):
    numbers = run(*MODEL, "--num-names", "3", "--train", "--batch", "2", "--forms", "auto/auto")
    (rows,) = numbers["results"].values()
    assert "losses" in rows and "post-processing" not in rows
    assert all(rows[module]["backward_s"] > 0 for module in ("backbone", "text encoder", "fusion", "dyconv", "head"))
    assert "backward, s" in capsys.readouterr().out


# --- compare ----------------------------------------------------------------------------------------------------------


def test_contenders_run_in_turn_and_parts_add_up_to_the_total(run, capsys, tmp_path, monkeypatch):
    shapes = []

    def other_model(pixel_values, input_ids, attention_mask):
        shapes.append((pixel_values.shape, input_ids.shape == attention_mask.shape))

    monkeypatch.setattr(compare, "build_dino", lambda device: other_model)
    monkeypatch.setattr(compare, "RATE_SIDES", (64,))
    page = tmp_path / "page.md"
    sizes = ("--size", "64", "96", "--size", "64", "64", "--num-names", "2", "--repeat", "2")
    numbers = run("compare", *sizes, "--page", str(page))
    rate = max(numbers["results"].pop("rates").values())
    assert [case.split(",")[0] for case in numbers["results"]] == ["64 x 96", "64 x 64"]
    assert shapes == [((1, 3, 64, 96), True)] * 4 + [((1, 3, 64, 64), True)] * 4  # warm-up, two rounds, memory
    for case in numbers["results"].values():
        assert list(case["contenders"]) == ["ours", "ours, new text", "plain", "GroundingDINO"]
        assert all(case["contenders"][name]["seconds"] > 0 for name in ("ours", "ours, new text", "plain"))
        parts = case["parts"]
        total = parts.pop("total")
        assert all(parts[part]["gmac"] > 0 for part in ("backbone", "fusion", "language layer", "dyconv", "head"))
        assert total["gmac"] == pytest.approx(sum(row["gmac"] for row in parts.values()))
        for row in parts.values():
            assert row["beyond"] == pytest.approx(row["seconds"] - 2 * row["gmac"] / rate)
    assert "limit: " in capsys.readouterr().out
    text = page.read_text()
    assert "| machine | " in text and "| GroundingDINO | " in text and "## 64 x 96, 2 names" in text


def test_a_contender_can_be_left_out(run, monkeypatch):
    monkeypatch.setattr(compare, "RATE_SIDES", (64,))
    numbers = run("compare", "--size", "64", "64", "--num-names", "2", "--repeat", "1", "--without", "GroundingDINO")
    del numbers["results"]["rates"]
    (case,) = numbers["results"].values()
    assert list(case["contenders"]) == ["ours", "ours, new text", "plain"]


@pytest.mark.slow
def test_a_compiled_model_is_a_contender_whose_first_pass_is_told_apart(run, monkeypatch):
    monkeypatch.setattr(compare, "RATE_SIDES", (64,))
    size = ("--size", "64", "64", "--num-names", "2", "--repeat", "1")
    numbers = run("compare", *size, "--without", "GroundingDINO", "--without", "plain", "--compiler", "eager")
    del numbers["results"]["rates"]
    (case,) = numbers["results"].values()
    assert list(case["contenders"]) == ["ours", "ours, new text", "compiled"]
    compiled = case["contenders"]["compiled"]
    assert compiled["first"] > 10 * compiled["seconds"] > 0


def test_an_export_that_is_not_there_is_named(run):
    with pytest.raises(SystemExit, match="--onnx: expected a file that glipv2 export wrote, found none at none.onnx"):
        run("compare", "--onnx", "none.onnx")


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_parts_of_loading_add_up(run, tmp_path, capsys):
    name = register_drawn(tmp_path / "drawn", sizes=((96, 64), (64, 96)))
    numbers = run("loading", "--batches", "3", "--opts", "DATASETS.TRAIN", f"('{name}',)", "SOLVER.IMS_PER_BATCH", "2")
    assert (numbers["batches"], numbers["images"]) == (3, 6)
    shares = numbers["results"]
    assert shares.pop("images_per_s") > 0
    assert all(share > 0 for share in shares.values()) and sum(shares.values()) == pytest.approx(1)
    assert "images a second" in capsys.readouterr().out


# --- vocabulary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clock", "left_out"), [("wall", []), ("cpu", ["separate", "official"])])
def test_ways_run_over_the_same_chunks(run, capsys, clock, left_out):
    without = [word for way in left_out for word in ("--without", way)]
    numbers = run(*VOCABULARY, "--num-names", "7", "--chunk-size", "3", "--clock", clock, *without)
    assert (numbers["names"], numbers["chunks"], numbers["size"], numbers["clock"]) == (7, 3, [64, 64], clock)
    ways = ["floor", "next image", "first image", "separate", "official"]
    assert list(numbers["results"]) == [way for way in ways if way not in left_out]
    assert all(row["seconds"] > 0 for row in numbers["results"].values())
    printed = capsys.readouterr().out
    assert "of floor" in printed and "chunks: 3" in printed
    assert ("of separate" in printed) == ("separate" not in left_out)


def test_names_are_those_of_lvis_and_numbered_ones_after_them():
    names = vocabulary.make_names(2500)
    assert len(set(names)) == len(names) == 2500
    assert names[:1203] == vocabulary.make_names(1203)
    assert names[1203] == f"{names[0]} 2" and names[2406] == f"{names[0]} 3"


def test_ways_differ_in_what_runs_how_often(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    model = measurement.load_model(tiny_cfg).eval()
    backbone, texts, widths, forms = [], [], [], []
    model.backbone.register_forward_hook(lambda *_: backbone.append(1))
    model.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    block = model.fusion_tower.blocks[0]
    block.fusion.register_forward_hook(lambda module, inputs, _: widths.append(inputs[1].shape[:2]))
    block.fusion.register_forward_hook(lambda module, *_: forms.append(module.form))
    inputs = {"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}
    ways = vocabulary.run_ways(model, inputs, [make_prompt([1]), make_prompt([2])], 20)
    expected = {
        "first image": (1, 2, [(2, 4)], ["auto"]),
        "next image": (1, 0, [(2, 4)], ["auto"]),
        "floor": (1, 0, [(2, 4)], ["auto"]),
        "separate": (2, 2, [(1, 3), (1, 4)], ["auto"] * 2),
        "official": (2, 2, [(1, 20)] * 2, ["plain"] * 2),
    }
    assert list(ways) == list(expected)
    found = {}
    with torch.no_grad():
        for way, run_way in ways.items():
            found[way] = run_way()
            assert (len(backbone), len(texts), [tuple(width) for width in widths], forms) == expected[way], way
            for calls in (backbone, texts, widths, forms):
                calls.clear()
    assert block.fusion.form == "auto"
    assert found["first image"] == found["next image"] > 0


def test_a_prompt_is_filled_up_with_tokens_of_no_phrase():
    prompt = make_prompt([1], [2])
    filled = vocabulary.fill_up(prompt, 9)
    assert filled.input_ids.tolist() == [*prompt.input_ids.tolist(), 0, 0, 0, 0, 0]
    assert torch.equal(filled.phrase_token_map[:, :4], prompt.phrase_token_map)
    assert filled.phrase_token_map.shape == (2, 9) and not filled.phrase_token_map[:, 4:].any()


# --- shortlist --------------------------------------------------------------------------------------------------------


def test_lists_of_all_sizes_are_asked_for_in_the_same_images(run, tmp_path, capsys):
    name = register_drawn(tmp_path / "drawn", sizes=((96, 64), (64, 96)))
    numbers = run("shortlist", "--shortlist", "1", "9", "--clock", "cpu", "--num-names", "9", "--num-images", "1",
                  "--opts", "DATASETS.TEST", f"('{name}',)")  # fmt: skip
    assert (numbers["names"], numbers["images"], numbers["prompts"]) == (9, 1, 1)
    assert list(numbers["results"]) == ["exact", "1", "9"]
    exact, _, all_names = numbers["results"].values()
    assert exact["recall"] == all_names["recall"] == 1.0 and exact["AP"] == all_names["AP"]
    assert all(row["seconds"] > 0 for row in numbers["results"].values())
    assert "recall of names" in capsys.readouterr().out


def test_other_names_read_differently_from_those_of_the_dataset():
    names = shortlist.with_other_names(["Aerosol_can", "zebra", "unheard of"], 10_000)
    assert names[:3] == ["Aerosol_can", "zebra", "unheard of"] and len(names) == len(set(names)) == 10_000
    assert "aerosol_can" not in names and names.count("zebra") == 1 and "computer" in names
    with pytest.raises(ValueError, match="--num-names: expected 1 to 2.*, found 100000"):
        shortlist.with_other_names(["zebra"], 100_000)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_added_time_is_measured_for_the_losses_that_are_on(run, tmp_path):
    name = register_drawn(tmp_path / "drawn", sizes=((96, 64),))
    opts = ["DATASETS.TRAIN", f"('{name}',)", "MODEL.GLIPV2.CONTRASTIVE.ENABLED", "True"]
    numbers = run("losses", "--num-batches", "1", "--opts", *opts)
    assert set(numbers["results"]) == {"step", "loss_contrastive"} and numbers["results"]["step"] > 0


def test_left_out_part_is_back_after_its_step():
    part = torch.nn.Linear(1, 1)
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.mlm_head = part

        def forward(self, batch):
            seen.append(self.mlm_head)
            return {"loss": self.weight.sum()}

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    assert all(losses.step_seconds(model, optimizer, [], without) > 0 for without in ("mlm_head", None))
    assert seen == [None, part] and model.mlm_head is part
    assert model.weight.item() == 0.0


# --- contrastive ------------------------------------------------------------------------------------------------------


def extra_mib(form, regions, words):
    return contrastive.measure(form, (regions, words, 16), "cpu", 1)["extra_mib"]


def test_memory_grows_with_regions_and_words_and_not_with_pairs(monkeypatch):
    monkeypatch.setattr("glipv2_d2.modeling.losses.masked_logsumexp.CHUNK_PAIRS", 2**13)
    small, large = (extra_mib("chunked", 256 * size, 128 * size) for size in (1, 4))
    assert large < 5 * small
    # A matrix of all pairs is 2 MiB.
    assert large < 1.5 and extra_mib("dense", 1024, 512) > 4


def test_regions_and_words_are_as_asked_and_all_regions_have_a_word():
    batch = contrastive.make_batch(50, 300, 8, "cpu")
    regions, words = batch[0].local, batch[1].local
    assert regions.vectors.shape == (50, 8) and words.vectors.shape == (300, 8)
    assert (regions.categories < 0).any() and (regions.categories >= 0).any()
    assert set(batch[2][1].tolist()) <= set(batch[3][1].tolist())
    assert_close(contrastive_loss(*batch, "chunked"), contrastive_loss(*batch, "dense"), atol=1e-5, rtol=1e-5)


def test_forms_are_measured_in_processes_of_their_own(run, capsys):
    numbers = run(*CONTRASTIVE, "--form", "chunked")
    assert (numbers["regions"], numbers["words"], numbers["dim"]) == (40, 30, 8)
    assert list(numbers["results"]) == ["chunked"]
    assert all(value > 0 for value in numbers["results"]["chunked"].values())
    printed = capsys.readouterr().out
    assert "extra, MiB" in printed and "chunked" in printed


class Killer:
    """A task at whose sight a process ends."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_form_whose_process_is_killed_ends_in_one_line(run, monkeypatch):
    monkeypatch.setattr(contrastive, "measure", Killer())
    with pytest.raises(SystemExit, match="error: --form chunked: expected its numbers, found that its process was"):
        run(*CONTRASTIVE, "--form", "chunked")


# --- masks ------------------------------------------------------------------------------------------------------------


def test_both_forms_have_the_same_logits_and_gradients():
    head, batch = masks.make_head(8, "cpu"), masks.make_batch(20, 9, 8, "cpu")
    weights = torch.randn(batch.targets.shape)
    logits = {name: form(head, batch) for name, form in masks.FORMS.items()}
    assert_close(logits["one map"], logits["all tokens"], atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad((each * weights).sum(), list(head.parameters())) for each in logits.values()]
    for one, other in zip(*gradients):
        assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_maps_may_start_from_the_pixels():
    head, batch = masks.make_head(8, "cpu"), masks.make_batch(3, 9, 8, "cpu")
    pixels = head.enlarge(head.extract(batch.pooled))
    for form in masks.FORMS.values():
        assert_close(form(head, batch, pixels), form(head, batch))


def test_training_takes_less_than_a_tenth_of_the_memory_of_all_token_maps():
    # A quarter of the channels and a quarter of the tokens: each box then needs a quarter of everything.
    head, batch = masks.make_head(64, "cpu"), masks.make_batch(100, 64, 64, "cpu")
    numbers = {form: masks.measure(form, head, batch, 1) for form in masks.FORMS}
    one, every = numbers["one map"], numbers["all tokens"]
    assert one["head_mib"] < every["head_mib"] / 10
    assert one["maps_mib"] < every["maps_mib"] / 10
    # The maps of all tokens before and after the clamp.
    assert every["maps_mib"] >= 2 * 100 * 64 * 28 * 28 * 4 / measurement.MIB


def test_boxes_and_tokens_are_as_asked():
    batch = masks.make_batch(30, 5, 4, "cpu")
    assert batch.pooled.shape == (30, 4, 14, 14) and batch.targets.shape == (30, 28, 28)
    assert batch.token_map.shape == (30, 5) and set(batch.token_map.sum(1).tolist()) == {2}
    assert masks.make_batch(3, 1, 4, "cpu").token_map.all()


def test_numbers_of_masks_are_printed_and_written(run, capsys):
    numbers = run("masks", "--boxes", "3", "--tokens", "5", "--dim", "8", "--repeat", "2")
    assert (numbers["boxes"], numbers["tokens"], numbers["dim"]) == (3, 5, 8)
    assert list(numbers["results"]) == ["one map", "all tokens"]
    assert all(value > 0 for form in numbers["results"].values() for value in form.values())
    printed = capsys.readouterr().out
    assert "head, MiB" in printed and "maps, MiB" in printed and "share" in printed


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_engines_of_ap_are_compared_on_the_same_boxes(run, capsys):
    numbers = run("evaluation", "--images", "60", "--boxes", "100")
    assert (numbers["images"], numbers["boxes"]) == (60, 100) and list(numbers["results"]) == ["auto", "reference"]
    fast, reference = (row["seconds"] for row in numbers["results"].values())
    assert 10 * fast < reference
    assert "60 x 100 boxes" in capsys.readouterr().out


def test_engines_that_differ_end_the_comparison(run, monkeypatch):
    monkeypatch.setattr("benchmarks.evaluation.precisions", lambda *_, engine: float(engine == "auto"))
    with pytest.raises(SystemExit, match="engines: expected equal precisions, found different ones"):
        run("evaluation", "--images", "2", "--boxes", "3")


# --- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--num-names", "5000"), "--num-names: expected at most 1203, found 5000"),
        ((*MODEL, "--prompt", ". ."), "--prompt: expected names with full stops between them"),
        ((*MODEL, "--train", "--num-names", "200"), "--train: expected names for one prompt, found names for"),
        ((*CONTRASTIVE, "--device", "gpu"), "MODEL.DEVICE: expected 'auto', 'cpu', .*, found 'gpu'"),
        ((*CONTRASTIVE, "--form", "triton"), "--form triton: expected --device cuda, found cpu"),
        (
            ("masks", "--boxes", "2", "--tokens", "3", "--dim", "7"),
            "MODEL.GLIPV2.MASK_HEAD.CONV_DIM: expected an even number",
        ),
    ],
)
def test_bad_requests_end_in_one_line(run, arguments, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        run(*arguments)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((*CONTRASTIVE, "--device", "auto"), marks=pytest.mark.slow),
        (*VOCABULARY, "--num-names", "3", "--opts", "MODEL.DEVICE", "auto"),
    ],
)
def test_the_device_may_be_left_open(run, words):
    assert run(*words)["results"]


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        *((command, "--size -1 2") for command in ("model", "vocabulary")),
        *(("model", argument) for argument in ("--forms fast/gather", "--forms plain", "--repeat 0")),
        *(("vocabulary", argument) for argument in ("--num-names 0", "--clock sun")),
        ("losses", "--num-batches 0"),
        *(("contrastive", argument) for argument in ("--form fast", "--regions 0", "--dim -1")),
        *(("masks", argument) for argument in ("--boxes 0", "--dim -1", "--tokens many")),
        ("evaluation", "--images 0"),
    ],
)
def test_bad_arguments_are_refused(command, argument, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments([command, *argument.split()])
    assert f"argument {argument.split()[0]}: " in capsys.readouterr().err


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_all_forms_of_encoding_have_the_same_codes(run):
    numbers = run("encoding", "--masks", "3", "--size", "30", "40", "--repeat", "1")
    assert list(numbers["results"]) == ["whole masks", "in the way", "beside"]
