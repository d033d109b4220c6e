import argparse
import gc
import importlib
import io
import os
import socket
import subprocess
import sys

import pytest

from glipv2_d2.program.main import COMMANDS, main, overview, run_command
from glipv2_d2.program.output import write_line

# What makes the start of a program slow.
HEAVY = ("torch", "detectron2", "transformers", "numpy", "cv2", "PIL")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == overview() + "\n"
    for name, command in COMMANDS.items():
        assert f"  {name} " in text and command.summary in text and command.examples[0] in text


def test_a_line_controls_no_terminal(capsys):
    write_line("\x1b[31mred\x1b[0m\a\x9b, L\u00f6we\t\U0001f43c\nnext")
    assert capsys.readouterr().out == "\\x1b[31mred\\x1b[0m\\x07\\x9b, L\u00f6we\t\U0001f43c\nnext\n"


def test_a_line_is_written_whatever_letters_the_output_knows(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    write_line("L\u00f6we")
    sys.stdout.reconfigure(encoding="utf-8")
    write_line(f"L\u00f6we, {os.fsdecode(bytes([0xE9]))}")
    assert written.getvalue() == "L\\xf6we\nL\u00f6we, \\udce9\n".encode()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_its_examples(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert all(example in text for example in COMMANDS[name].examples) and "--traceback" in text
    assert all(example.startswith(f"glipv2 {name}") for example in COMMANDS[name].examples)


def test_help_loads_nothing_heavy():
    """One process asks every command for its help."""
    code = "import sys; from glipv2_d2.program.main import COMMANDS, main; main(['--help'])\n"
    code += "for name in COMMANDS:\n    try: main([name, '--help'])\n    except SystemExit: pass\n"
    code += f"print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr, end='')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_module_starts_the_program():
    done = subprocess.run([sys.executable, "-m", "glipv2_d2", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"glipv2_d2 {importlib.import_module('glipv2_d2').__version__}\n"


def test_unknown_command_names_the_likeliest(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["evall", "x"])
    message = exit_info.value.code
    assert "\n" not in message and "found 'evall'; did you mean eval?" in message
    with pytest.raises(SystemExit) as exit_info:
        main(["zzz"])
    assert "did you mean" not in exit_info.value.code


def test_only_the_module_of_the_called_command_is_imported():
    code = "import sys; from glipv2_d2.program.main import COMMANDS, main\ntry: main(['eval', '--help'])\n"
    code += "except SystemExit: pass\nprint(*[m for m in sys.modules if m.startswith('glipv2_d2.program.')])"
    loaded = python(code).splitlines()[-1].split()
    assert "glipv2_d2.program.evaluate" in loaded
    others = {f"glipv2_d2.program.{command.module}" for name, command in COMMANDS.items() if name != "eval"}
    assert not others & set(loaded)


@pytest.mark.parametrize("traceback", [False, True])
def test_bad_input_ends_in_one_line_unless_a_traceback_is_asked_for(traceback, tmp_path):
    words = ["--config-file", str(tmp_path / "none.yaml"), *["--traceback"] * traceback]
    with pytest.raises(FileNotFoundError if traceback else SystemExit) as caught:
        run_command("eval", words)
    assert "none.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_every_command_has_the_two_functions():
    for command in COMMANDS.values():
        module = importlib.import_module(f"glipv2_d2.program.{command.module}")
        module.add_arguments(argparse.ArgumentParser())
        assert callable(module.run) and module.__doc__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "photos"], "--data: expected the flag before the path of the data, found 'photos' without it"),
        (["check-data", "photos", "--output", "out"], "--data: expected the flag before the path of the data"),
        (["check-data"], "check-data: expected --data PATH, or --config-file FILE with datasets, found neither"),
        (["check-data", "--data", "photos", "SOLVER.MAX_ITER"], "after all flags, found 'SOLVER.MAX_ITER'"),
        (["train", "data=photos.yaml", "epochs=1"], "found 'data=photos.yaml'; flags are --data photos.yaml"),
        (["train", "SOLVER.MAX_ITER=9"], "found 'SOLVER.MAX_ITER=9'; keys are SOLVER.MAX_ITER 9"),
    ],
)
def test_a_forgotten_flag_of_the_data_is_told(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert message in str(raised.value.code) and "\n" not in str(raised.value.code)


def test_eval_takes_the_folder_of_a_run(tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr("glipv2_d2.engine.launch.launch_run", lambda job, arguments: launched.append(arguments))
    (tmp_path / "config.yaml").touch()
    importlib.import_module("torch").save({"model": {}}, tmp_path / "model_final.pth")
    assert main(["eval", "--model", str(tmp_path), "MODEL.DEVICE", "cpu"]) == 0
    (arguments,) = launched
    assert arguments.config_file == str(tmp_path / "config.yaml") and arguments.opts == ["MODEL.DEVICE", "cpu"]
    with pytest.raises(SystemExit, match="--model: expected it or --config-file, found both"):
        main(["eval", "--model", str(tmp_path), "--config-file", "glip_swin_t_c"])


def test_eval_measures_on_other_data_and_leaves_the_folder_of_the_run_alone(tmp_path, monkeypatch):
    launched, run = [], tmp_path / "run"
    monkeypatch.setattr("glipv2_d2.engine.launch.launch_run", lambda job, arguments: launched.append(arguments))
    read = []
    monkeypatch.setattr("glipv2_d2.data.own_sets.register_test_sets", lambda *paths: read.append(paths) or ("a_val",))
    monkeypatch.chdir(tmp_path)
    run.mkdir()
    (run / "config.yaml").touch()
    command = ["eval", "--config-file", "run/config.yaml", "--data", "photos"]
    assert main([*command, "MODEL.DEVICE", "cpu"]) == main([*command, "--output", "there"]) == 0
    data = ["DATASETS.REGISTER", str((str(tmp_path / "photos"),)), "DATASETS.DIVIDE", "False", "DATASETS.TRAIN", "()"]
    data += ["DATASETS.TEST", "('a_val',)"]
    assert launched[0].opts == [*data, "OUTPUT_DIR", "run/eval", "MODEL.DEVICE", "cpu"]
    assert launched[1].opts == [*data, "OUTPUT_DIR", "there"]
    assert read == [("photos", "run/eval/datasets"), ("photos", "there/datasets")]
    main(["eval", "--config-file", "run/config.yaml", "--output", "there"])
    assert launched[2].opts == ["OUTPUT_DIR", "there"]
    for words, message in (
        (["--config-file", "glip_swin_t_c"], "--output: expected the folder of the results beside --data, found none"),
        (["--config-file", "run/config.yaml", "--resume"], "--resume: expected no --data"),
        (["--config-file", "run/config.yaml", "--output", "./run"], "--output: expected another folder than that of"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["eval", "--data", "photos", *words])


def test_the_end_of_a_program_searches_nothing_for_cycles(tmp_path, monkeypatch):
    """Half a million objects of torch and others took Python more than a second after the last line."""
    registered = []
    monkeypatch.setattr("atexit.register", registered.append)
    with pytest.raises(SystemExit):
        main(["check-data"])
    assert registered == [gc.freeze]


def test_an_address_that_cannot_listen_is_told_before_the_model_is_built():
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(SystemExit, match=f"--port: expected a free port, found {port} taken; try another"):
            main(["serve", "--model", "nowhere", "--port", port])
    # It is kept for documents, no machine has it.
    with pytest.raises(SystemExit, match="--host: expected an address of this machine, found 192.0.2.1"):
        main(["serve", "--model", "nowhere", "--host", "192.0.2.1"])


def test_the_sign_of_the_home_folder_is_read_where_shells_leave_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=f"error: {tmp_path}/run: expected"):
        main(["predict", __file__, "--model=~/run", "--output=~/out"])
    with pytest.raises(SystemExit, match=f"expected a run in --output {tmp_path}/out"):
        main(["train", "--output", "~/out", "--resume"])


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_cannot_be_is_told_before_the_model_is_built(port):
    with pytest.raises(SystemExit, match=f"--port: expected a number from 1 to 65535, found {port}"):
        main(["serve", "--model", "nowhere", "--port", port])


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train", "--data", "photos", "--output", "/proc/out"], "/proc/out"),
        (["predict", "a.png", "--model", "nowhere", "--output", "/proc/out"], "/proc/out"),
        (["convert-data", "photos", "/proc/out"], "/proc/out"),
        (["check-data", "--data", "photos", "--output", "/proc/out"], "/proc/out"),
        (["export", "--config-file", "glip_swin_t_c", "--output", "/proc/out.pt2"], "/proc"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_named_with_its_flag_before_anything_is_read(words, where):
    with pytest.raises(SystemExit) as raised:
        main(words)
    expected = f"error: --output: expected a folder that can be written to, found {where}, where nothing can be written"
    assert str(raised.value.code).startswith(expected)


@pytest.mark.parametrize(
    ("is_terminal", "expected"), [(False, ""), (True, "glipv2 eval: loading libraries, some seconds\n")]
)
def test_the_seconds_of_loading_are_announced_on_a_terminal_and_may_be_ended(is_terminal, expected):
    code = f"""
import sys
from glipv2_d2.program.main import main

class Interrupted:
    def find_spec(self, name, *_):
        if name == "glipv2_d2.engine":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
sys.stderr.isatty = lambda: {is_terminal}
sys.exit(main(["eval", "--config-file", "mine.yaml"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f"{expected}stopped by Ctrl-C\n")
