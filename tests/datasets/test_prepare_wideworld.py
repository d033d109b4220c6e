"""The whole program on packages of a few drawn pictures, as they lie in the cache: nothing is fetched."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import prepare_wideworld
import pytest
from layered_font import write_layered_font
from scenes.curation import CURATION, PHOTOS_PACKAGE, STAMPS_PACKAGE
from scenes.wide_tables import CLIP_ART, EMOJI_FONT, FLASHCARDS, WORDNET

SMALL = dataclasses.replace(
    CURATION,
    **dict.fromkeys(("excluded", "included", "renamed", "real"), {}),
    backgrounds={"monuments": {f"{number}.webp": "a castle" for number in range(5)}},
)


def picture(number: int, noise: bool = False) -> np.ndarray:
    """A disc of two colours, others for each number; with noise it passes for a photograph."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((120, 120, 4), np.uint8)
    for radius in (55, 30):
        cv2.circle(pixels, (60, 60), radius, (*(int(value) for value in rng.integers(30, 255, 3)), 255), -1)
    if noise:
        pixels[:, :, :3] = np.where(pixels[:, :, 3:] > 0, rng.integers(0, 255, (120, 120, 3)), 0)
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def cache(tmp_path, make_rcc, make_wordnet) -> Path:
    folder = tmp_path / "cache"
    stamps = folder / STAMPS_PACKAGE / "usr/share/tuxpaint/stamps"
    for number, name in enumerate(("fox", "hammer", "dog")):
        save(stamps / f"animals/{name}.png", picture(number, noise=True))
        (stamps / f"animals/{name}.txt").write_text(f"A {name}.\n")
    rcc = folder / PHOTOS_PACKAGE / "usr/share/gcompris-qt/rcc"
    rcc.mkdir(parents=True)
    ground = cv2.imencode(".webp", np.full((200, 200, 3), 99, np.uint8))[1].tobytes()
    base = "gcompris/monuments/resource"
    (rcc / "monuments.rcc").write_bytes(make_rcc({f"{base}/{number}.webp": ground for number in range(5)}))
    base = "gcompris/lang/resource/words_sample"
    files = {f"{base}/{name}.webp": cv2.imencode(".webp", picture(9))[1].tobytes() for name in ("fox", "crow", "joy")}
    (rcc / "lang.rcc").write_bytes(make_rcc(files))
    art = folder / CLIP_ART / "usr/share/openclipart/png"
    for number, name in enumerate(("fox_01", "crow_01", "crow_02", "owl_01", "poodle_01", "mouse_01", "dog_01")):
        save(art / f"animals/{name}.png", picture(20 + number))
    save(art / "animals/crow_copy.png", picture(21))
    save(folder / "lobehub_fluent-emoji-3d/package/assets/1f989.webp", picture(40))
    save(folder / FLASHCARDS / "usr/share/games/pysiogame/res/images/art4apps/animals/mouse.jpg", picture(50))
    # Two triangles of a layered glyph: a fox.
    write_layered_font(folder / "twemoji-colr-font/package/twemoji.woff2", 0x1F98A)
    font = folder / EMOJI_FONT / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font.parent.mkdir(parents=True)
    font.write_bytes(b"not read here")
    make_wordnet().rename(folder / "words")
    (folder / WORDNET / "usr/share").mkdir(parents=True)
    (folder / "words").rename(folder / WORDNET / "usr/share/wordnet")
    return folder


def run(tmp_path, cache, monkeypatch, *more) -> Path:
    monkeypatch.setattr(prepare_wideworld, "CURATION", SMALL)
    monkeypatch.setattr(prepare_wideworld, "NUM_UNSEEN", 1)
    # A colour font cannot be drawn in a few lines.
    monkeypatch.setattr("scenes.wide_sources.find_emoji_font", lambda *_: ())
    numbers = "--num-novel 1 --num-train 8 --num-val 3 --num-held-looks 2 --size 96 --objects 1 2 --workers 1"
    folders = ["--output", str(tmp_path / "wide"), "--cache", str(cache), "--held-source", "flash cards"]
    prepare_wideworld.main([*folders, *numbers.split(), *more])
    return tmp_path / "wide"


def test_the_program_writes_names_of_all_collections_but_none_that_is_unseen(tmp_path, cache, monkeypatch, capsys):
    wide = run(tmp_path, cache, monkeypatch)
    manifest = json.loads((wide / "manifest.json").read_text("utf-8"))
    names = {split: set(found) for split, found in manifest["names"].items()}
    stampworld = {"fox", "hammer", "dog"}
    (unseen,) = stampworld - names["train"]
    assert names["train"] | names["val_names"] == {"fox", "hammer", "crow", "owl", "mouse"}
    assert len(names["val_names"]) == 1 and names["val_source"] <= {"fox", "crow", "mouse"}
    assert set(manifest["num_images"]) == {"train", *names} and "real" not in manifest["num_images"]

    train = json.loads((wide / "annotations" / "train.json").read_text("utf-8"))
    parents = {one["name"]: one["supercategory"] for one in train["categories"]}
    assert parents.get("crow", "bird") == "bird" and parents.get("fox", "animal") == "animal"
    assert all("not_exhaustive_category_ids" in image for image in train["images"])
    licences = (wide / "LICENSES.md").read_text("utf-8")
    assert "- flash cards/lang/words_sample/crow.webp" in licences and "CC BY-SA 3.0" in licences
    assert "- clip art/animals/crow_01.png" in licences and "- animals/hammer.png" in licences
    assert "clip art/animals/crow_copy.png" not in licences or "clip art/animals/crow_02.png" not in licences
    # By hand, without the unseen dog and its poodle. The mouse of the flash cards has a black ground, the fox of the
    # layered font is nearly of one colour, and one crow is a copy.
    assert unseen == "dog"
    of_sources = (
        "photographs 2 and 2, drawn stamps 0 and 0, flash cards 2 and 2, clip art 4 and 5, fluent emoji 1 and 1"
    )
    counts = f"5 names and 10 looks: {of_sources}, twemoji 0 and 0, noto emoji 0 and 0; 3 names with two or more looks"
    assert counts in capsys.readouterr().out
    run(tmp_path, cache / "elsewhere", monkeypatch)  # finished: the packages are not even looked for
    assert "there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--package", "fruit=a.deb"], "error: --package: expected one of .*, found .'fruit'.$"),
        (["--package", "fruit"], "error: --package: expected NAME=FILE, found 'fruit'$"),
        (["--num-novel", "9"], "error: num_novel: expected at most [34], the unrelated names, found 9$"),
        (["--max-looks", "0"], "error: max_looks: expected at least 1, found 0$"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_line(tmp_path, cache, monkeypatch, more, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, cache, monkeypatch, *more)


def test_a_package_without_its_folder_is_an_error_of_one_line(tmp_path, cache, monkeypatch):
    (cache / EMOJI_FONT / "usr").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="NotoColorEmoji.ttf: expected this in the package, found none$"):
        run(tmp_path, cache, monkeypatch)


def test_a_package_file_at_hand_is_checked(tmp_path, cache, monkeypatch):
    (cache / CLIP_ART).rename(tmp_path / "moved")
    (tmp_path / "art.deb").write_bytes(b"another file")
    with pytest.raises(SystemExit, match="art.deb: expected version .* bytes, found 12 bytes$"):
        run(tmp_path, cache, monkeypatch, "--package", f"{CLIP_ART}={tmp_path / 'art.deb'}")
    assert not (tmp_path / "wide").exists()


def test_the_version_of_the_tables_is_that_of_what_their_sets_hold_in_any_order(monkeypatch):
    """Two processes see the texts of a set in different orders, as one does numbers that were put in differently."""
    assert list(frozenset([0, 8])) != list(frozenset([8, 0]))
    versions = []
    for numbers in ([0, 8], [8, 0], [0, 9]):
        monkeypatch.setattr(prepare_wideworld.wide_words, "EXCLUDED", frozenset(numbers))
        versions.append(prepare_wideworld._source_version())
    assert versions[0] == versions[1] != versions[2]
