"""Which implementation scores captions, and what happens where Java or a model is missing."""

import logging
import subprocess
import types

import numpy as np
import pytest

from glipv2_d2.evaluation.caption_metrics import java_metrics, score_captions
from glipv2_d2.evaluation.caption_metrics.java_metrics import JavaMetricsError, missing_for_java, score_with_java

CAPTIONS = ["A man's dog, running.", "two cats (black)", "a bus"]
REFERENCES = [
    ["a man's dog runs", "A dog running"],
    ["Two black cats.", "two cats (black) sit"],
    ["a red bus on the street"],
]
NAMES = ["BLEU1", "BLEU2", "BLEU3", "BLEU4", "ROUGE_L", "CIDEr"]


def test_scores_without_java_are_percentages():
    scores = score_captions(CAPTIONS, REFERENCES, "python")
    assert list(scores.values) == NAMES and scores.implementation == "python"
    perfect = score_captions([texts[0].upper() for texts in REFERENCES], [texts[:1] for texts in REFERENCES], "python")
    assert perfect.values["BLEU1"] == pytest.approx(100.0) and perfect.values["ROUGE_L"] == pytest.approx(100.0)
    # The second caption has three words, and so no run of four.
    assert perfect.values["CIDEr"] == pytest.approx((1000 + 750 + 1000) / 3)


def test_bleu_counts_tokens_not_strings():
    # "a man 's dog running" has the words of "a man 's dog", and "dog running" of the other reference.
    scores = score_captions(CAPTIONS[:1], REFERENCES[:1], "python")
    assert scores.values["BLEU1"] == pytest.approx(100.0)
    assert scores.values["BLEU2"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ([], [], "references: expected at least one for each of 0 captions, found some for 0"),
        (["a"], [[]], "found some for 0"),
        (["a", "b"], [["a"]], "expected at least one for each of 2 captions, found some for 1"),
    ],
)
def test_captions_need_references(captions, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(captions, references)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="expected one of auto, pycocoevalcap, python, found 'java'"):
        score_captions(CAPTIONS, REFERENCES, "java")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder like pycocoevalcap's with all files, a program java, and scorers that find fixed numbers."""
    files = [java_metrics._TOKENIZER_FILE, *java_metrics._METEOR_FILES, *java_metrics._SPICE_FILES]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")

    class Tokenizer:
        def tokenize(self, rows):
            return {row: [text["caption"].lower() for text in texts] for row, texts in rows.items()}

    def scorer(result):
        def compute_score(self, wanted, found):
            assert list(wanted) == list(found) and all(len(texts) == 1 for texts in found.values())
            print("noise")
            return result, np.array([result, result, result])

        return type("Scorer", (), {"__init__": lambda self, *options: None, "compute_score": compute_score})

    members = {
        "PTBTokenizer": Tokenizer,
        "Bleu": scorer([0.4, 0.3, 0.2, 0.1]),
        "Rouge": scorer(0.5),
        "Cider": scorer(1.25),
        "Meteor": scorer(0.25),
        "Spice": scorer(0.2),
    }
    monkeypatch.setattr(java_metrics, "_package_folder", lambda: tmp_path)
    monkeypatch.setattr(java_metrics.shutil, "which", lambda program: f"/bin/{program}")
    monkeypatch.setattr(java_metrics.importlib, "import_module", lambda name: types.SimpleNamespace(**members))
    return types.SimpleNamespace(folder=tmp_path, members=members)


def test_all_scores_come_from_the_package_where_it_works(package):
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.implementation == "pycocoevalcap"
    expected = dict(zip([*NAMES, "METEOR", "SPICE"], [40.0, 30.0, 20.0, 10.0, 50.0, 125.0, 25.0, 20.0]))
    assert scores.values == pytest.approx(expected)


@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("spice/lib/stanford-corenlp-3.6.0-models.jar", "SPICE"),
        ("spice/lib/stanford-corenlp-3.6.0.jar", "SPICE"),
        ("spice/spice-1.0.jar", "SPICE"),
        ("meteor/meteor-1.5.jar", "METEOR"),
        ("meteor/data/paraphrase-en.gz", "METEOR"),
    ],
)
def test_a_score_without_its_files_is_left_out_and_nothing_is_fetched(package, caplog, file, lost):
    (package.folder / file).unlink()
    # What is not there is not even made: its constructor would fetch it.
    package.members[lost.capitalize()] = None
    scores = score_captions(CAPTIONS, REFERENCES)
    assert set(NAMES) | {"METEOR", "SPICE"} == set(scores.values) | {lost} and lost not in scores.values
    assert f"{lost} is not computed" in caplog.text and file in caplog.text


@pytest.mark.parametrize("error", [OSError("no memory"), ValueError("b''"), subprocess.CalledProcessError(1, "java")])
def test_a_program_that_fails_loses_its_score_only(package, caplog, error):
    def compute_score(self, wanted, found):
        raise error

    package.members["Spice"] = type("Spice", (), {"compute_score": compute_score})
    scores = score_captions(CAPTIONS, REFERENCES)
    assert list(scores.values) == [*NAMES, "METEOR"]
    assert "SPICE is not computed: its program failed" in caplog.text


def no_java(package, monkeypatch):
    monkeypatch.setattr(java_metrics.shutil, "which", lambda program: None)


def no_package(package, monkeypatch):
    monkeypatch.setattr(java_metrics, "_package_folder", lambda: None)


def no_tokenizer(package, monkeypatch):
    (package.folder / java_metrics._TOKENIZER_FILE).unlink()


def read_only(package, monkeypatch):
    monkeypatch.setattr(java_metrics.os, "access", lambda path, mode: False)


def dead_tokenizer(package, monkeypatch):
    def tokenize(self, rows):
        raise OSError("it\ndied")

    monkeypatch.setattr(package.members["PTBTokenizer"], "tokenize", tokenize)


def silent_tokenizer(package, monkeypatch):
    monkeypatch.setattr(package.members["PTBTokenizer"], "tokenize", lambda self, rows: {0: [""]})


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (no_java, "there is no program java"),
        (no_package, "the package pycocoevalcap is not installed"),
        (no_tokenizer, "stanford-corenlp-3.4.1.jar is missing"),
        (read_only, "cannot be written to"),
        (dead_tokenizer, r"the tokenizer of pycocoevalcap failed \(it died\)"),
        (silent_tokenizer, r"failed \(found 1 of 2 sentences of image 0\)"),
    ],
)
def test_without_the_package_python_scores(package, monkeypatch, caplog, break_it, reason):
    break_it(package, monkeypatch)
    with caplog.at_level(logging.INFO):
        scores = score_captions(CAPTIONS, REFERENCES, "auto")
    assert scores.implementation == "python"
    assert scores.values == score_captions(CAPTIONS, REFERENCES, "python").values
    with pytest.raises(JavaMetricsError, match=reason):
        score_with_java(CAPTIONS, REFERENCES)
    with pytest.raises(ValueError, match=f"implementation 'pycocoevalcap': .*{reason}"):
        score_captions(CAPTIONS, REFERENCES, "pycocoevalcap")
    assert "captions are scored without pycocoevalcap" in caplog.text


def test_captions_travel_on_one_line_each(package, monkeypatch):
    seen = []

    def tokenize(self, rows):
        seen.append(rows)
        return {row: ["x"] * len(texts) for row, texts in rows.items()}

    monkeypatch.setattr(package.members["PTBTokenizer"], "tokenize", tokenize)
    score_with_java(["a\r\nb\u2028c", " "], [["d"], ["e\tf", ""]])
    assert seen[0] == {0: [{"caption": "d"}], 1: [{"caption": "e f"}, {"caption": "."}]}
    assert seen[1] == {0: [{"caption": "a b c"}], 1: [{"caption": "."}]}


@pytest.mark.skipif(missing_for_java() != "", reason=missing_for_java())
def test_both_implementations_agree():
    captions = [*CAPTIONS, "", "end"]
    references = [*REFERENCES, ["a", "b"], ["The end.", ""]]
    java, python = (score_captions(captions, references, name) for name in ("pycocoevalcap", "python"))
    assert {name: java.values[name] for name in NAMES} == pytest.approx(python.values)
    assert 0 < java.values["METEOR"] < 100
