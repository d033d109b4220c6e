"""The report of a GPU, rehearsed on the CPU: every part gives its rows, and none takes the time of the others."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gpu_report
import pytest
import torch
from benchmarks import gpu_parts

ROOT = Path(__file__).parents[2]
SMALL = ("--device", "cpu", "--sizes", "64x96", "--names", "3", "--batches", "1", "2", "--train-batch", "2")


@pytest.fixture
def arguments(tiny_cfg, tmp_path):
    """A command line for a small model with a contrastive head, on the CPU."""
    tiny_cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = True
    config = tmp_path / "small.yaml"
    config.write_text(tiny_cfg.dump())
    files = ("--config-file", str(config), "--train-config-file", str(config))
    return ["--output", str(tmp_path / "report"), *SMALL, *files, "--compiler", "eager"]


@pytest.fixture
def run_part(arguments, monkeypatch):
    """Run a part in this process; return its rows as json knows them."""
    for name, value in {"SECONDS_OF_A_CASE": 0.0, "PASSES": (1, 1), "WARMUP_PASSES": 1, "NUM_KERNELS": 2}.items():
        monkeypatch.setattr(gpu_parts, name, value)
    settings = gpu_parts.Settings(**json.loads(json.dumps(vars(gpu_report.parse_arguments(arguments)))))

    def run(name: str) -> list[dict]:
        rows = []
        gpu_parts.PARTS[name](settings, lambda row: rows.append(json.loads(json.dumps(row))))
        return rows

    return run


def test_the_machine_is_described(run_part):
    facts = {row["case"]: row["value"] for row in run_part("machine")}
    assert facts["torch"] == torch.__version__ and facts["device"] == "cpu"
    assert facts["matrix product, bfloat16"].endswith("TFLOP/s") and facts["copy"].endswith("GB/s")


def test_forms_equal_those_of_the_cpu(run_part):
    rows = {row["case"]: row for row in run_part("equality")}
    assert list(rows) == [
        *("contrastive loss, chunked", "contrastive loss, triton"),
        *("detections, auto/auto", "training, auto/auto: losses", "training, auto/auto: gradients"),
        *("detections, plain/torchvision", "training, plain/torchvision: losses"),
        "training, plain/torchvision: gradients",
    ]
    assert "needs tensors on a CUDA device, found cpu" in rows.pop("contrastive loss, triton")["failed"]
    assert all(row["difference"] <= row["limit"] and "failed" not in row for row in rows.values())


@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_passes_of_all_shapes_are_measured(run_part, how):
    rows = run_part(how)
    assert [row["case"] for row in rows] == [
        "64x96, 3 names, batch 1, bfloat16",
        "64x96, 3 names, batch 1, float32",
        "64x96, 3 names, batch 2, bfloat16",
    ]
    assert all(row["images/s"] > 0 and "failed" not in row for row in rows)
    assert rows[-1]["images/s"] == pytest.approx(2 / rows[-1]["ms"] * 1000)


@pytest.mark.slow  # some seconds
def test_training_is_measured_in_three_ways(run_part):
    rows = {row["case"]: row for row in run_part("training")}
    assert list(rows) == ["own forms", "own forms, checkpointing", "official forms"]
    assert all(row["images/s"] > 0 for row in rows.values())
    memory = [row["peak above weights, MiB"] for row in rows.values()]
    assert memory[1] < memory[0] < memory[2]


@pytest.mark.slow  # some seconds
def test_what_takes_time_is_named(run_part):
    rows = run_part("kernels")
    assert [row["case"] for row in rows] == ["pass"] * 2 + ["training step"] * 2
    assert rows[0]["ms"] >= rows[1]["ms"] > 0 and rows[0]["calls"] > 0
    assert run_part("syncs") == [{"case": "host syncs", "skipped": "only a GPU is waited for"}]


def test_a_case_that_fails_is_a_row(run_part, monkeypatch):
    def load_model(cfg):
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(gpu_parts, "load_model", load_model)
    rows = run_part("eager")
    assert len(rows) == 3 and all(row["failed"].startswith("TypeError: ") for row in rows)


def test_differences_are_judged():
    assert gpu_parts.judge(0.5, 0.5) == {"difference": 0.5, "limit": 0.5}
    assert gpu_parts.judge(0.6, 0.5)["failed"] == gpu_parts.judge(float("nan"), 0.5)["failed"] == "above the limit"


# --- time -------------------------------------------------------------------------------------------------------------

# In place of benchmarks.gpu_parts: one part never ends, nor does what it started; one dies; the others write a row.
FAKE_PARTS = """
import json, subprocess, sys, time
name, file, settings = sys.argv[1:]
with open(file, "a") as rows:
    rows.write(json.dumps({"case": name, "device": json.loads(settings)["device"]}) + "\\n")
    rows.write('{"cas' if name == "eager" else "")
if name == "machine":
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
if name == "tests":
    sys.exit("one\\ntwo | three")
"""


@pytest.fixture
def report_of_fakes(tmp_path, monkeypatch):
    """Run the report with parts that need no model."""
    (tmp_path / "tools" / "benchmarks").mkdir(parents=True)
    (tmp_path / "tools" / "benchmarks" / "gpu_parts.py").write_text(FAKE_PARTS)
    monkeypatch.setattr(gpu_report, "TOOLS", tmp_path / "tools")
    monkeypatch.setattr(gpu_report, "SECONDS_TO_END", 0.2)

    def run(*arguments: str) -> tuple[dict, str]:
        gpu_report.main(["--output", str(tmp_path / "report"), *arguments])
        files = [tmp_path / "report" / f"gpu_report.{ending}" for ending in ("json", "md")]
        return json.loads(files[0].read_text()), files[1].read_text()

    return run


def test_a_slow_part_ends_with_its_share_and_a_dead_one_says_why(report_of_fakes):
    begin = time.monotonic()
    report, page = report_of_fakes("--minutes", "0.2", "--device", "cpu", "--parts", "eager", "tests", "machine")
    assert time.monotonic() - begin < 12
    parts = report["parts"]
    assert list(parts) == ["machine", "tests", "eager"]
    # 2 of 11 shares of 11.8 s.
    assert parts["machine"]["limit"] == pytest.approx(2.15, abs=0.05)
    assert parts["machine"]["rows"][0] == {"case": "machine", "device": "cpu"}
    assert parts["machine"]["rows"][1]["failed"] == "ended after 2 s, its share of the time"
    # 4 of 9 shares of some 9 s, and what this part leaves.
    assert 3 < parts["tests"]["limit"] < 4.4 < parts["eager"]["limit"]
    assert parts["tests"]["rows"][1]["failed"] == "exit status 1: one | two | three"
    # A line that was being written is none.
    assert parts["eager"]["rows"] == [{"case": "eager", "device": "cpu"}]
    assert "| the rest |  | exit status 1: one \\| two \\| three |" in page


def test_rows_with_different_columns_make_a_table():
    rows = [
        {"case": "a", "ms": 12.3456},
        {"case": "b", "failed": "x|y\nz"},
        {"case": "c", "images/s": 12345.6, "ms": 2},
    ]
    assert gpu_report.make_table(rows) == [
        "| case | ms | images/s | failed |",
        "| --- | --- | --- | --- |",
        "| a | 12.35 |  |  |",
        "| b |  |  | x\\|y z |",
        "| c | 2 | 12346 |  |",
    ]


@pytest.mark.parametrize("wrong", [("--sizes", "64"), ("--minutes", "0"), ("--names", "-1"), ("--parts", "speed")])
def test_bad_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        gpu_report.parse_arguments(["--output", "there", *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow  # nine processes
def test_whole_command_on_the_cpu(arguments, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "gpu_report.py"), *arguments, "--minutes", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "report" / "gpu_report.json").read_text())["parts"]
    assert list(parts) == list(gpu_report.PARTS)
    failed = [(name, row["case"]) for name, part in parts.items() for row in part["rows"] if "failed" in row]
    assert failed == [("equality", "contrastive loss, triton"), ("contrastive", "triton, 512 regions, 256 words")]
    assert all("reason" in row for row in parts["tests"]["rows"])
