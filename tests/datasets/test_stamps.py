import dataclasses
import json

import cv2
import numpy as np
import prepare_stampworld
import pytest
from scenes.curation import CURATED_VERSIONS, CURATION, PHOTOS_PACKAGE, STAMPS_PACKAGE
from scenes.stamps import category_of, load_attributions, load_backgrounds, load_photographs, load_stamps, name_of

SMALL = dataclasses.replace(
    CURATION,
    excluded={"animals/sketch.png": "drawing"},
    included={"space/moon.png": "photograph in another folder", "animals/dull.png": "few colours"},
    renamed={"animals/odd.png": "odd bird"},
    backgrounds={"monuments": {"egypt/one.webp": "a pyramid", "gone.webp": "a castle"}, "sea": {"two.webp": "a reef"}},
    real={"farm": {"animals/red_cow.webp": "red cow"}},
)


def photo(height=120, width=100, colours=True, seed=0):
    """An image with alpha: noise has thousands of colours, one grey has one."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 4)).astype(np.uint8)
    if not colours:
        pixels[:] = 128
    pixels[:, :, 3] = 255
    pixels[:3, :, 3] = 0
    return pixels


@pytest.fixture
def stamps(tmp_path):
    """A folder of stamps: what should be kept, and one of each reason not to."""
    folder = tmp_path / "stamps"

    def add(path, pixels, caption="A thing."):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / path), pixels)
        if caption:
            (folder / path).with_suffix(".txt").write_text(f"{caption}\nde.utf8=Ein Ding.\n", "utf-8")

    add("animals/crow.png", photo(), "A crow.")
    add("animals/odd.png", photo(), "Feed the birds!")
    add("food/apple.png", photo(400, 200), "An apple (a fruit). It is red.")
    add("space/moon.png", photo(colours=False), "The moon.")
    add("animals/dull.png", photo(colours=False), "A dull cat.")
    add("animals/grey.png", photo(colours=False))
    add("animals/sketch.png", photo())
    add("animals/cartoon/cat.png", photo())
    add("seasonal/santa.png", photo())
    add("animals/untold.png", photo(), caption="")
    add("animals/small.png", photo(89, 80))
    add("animals/opaque.png", photo()[:, :, :3])
    add("animals/framed.png", photo()[3:])
    return folder


def test_only_photographs_of_a_fair_size_with_a_caption_are_kept(stamps):
    cut_outs = load_stamps(stamps, SMALL, max_side=60)
    assert {cut_out.identity: cut_out.category.name for cut_out in cut_outs} == {
        "animals/crow.png": "crow",
        "animals/dull.png": "dull cat",
        "animals/odd.png": "odd bird",
        "food/apple.png": "apple",
        "space/moon.png": "moon",
    }


def test_stamps_are_shrunk_to_the_size_asked_for(stamps):
    sides = {cut_out.identity: cut_out.pixels.shape for cut_out in load_stamps(stamps, SMALL, max_side=60)}
    assert max(sides["food/apple.png"]) == 60


def test_a_stamp_that_is_no_image_is_named(stamps):
    (stamps / "animals" / "crow.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="animals/crow.png: expected a PNG image"):
        load_stamps(stamps, SMALL, max_side=60)


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        *(("A red kangaroo.", "red kangaroo"), ("An owl.", "owl"), ("The full moon.", "full moon")),
        *(
            ("A peacock (a male peafowl).", "peacock"),
            ("Two flowers.", "two flowers"),
            ("An F-22 Raptor.", "f-22 raptor"),
        ),
        *(("Hibiscus", "hibiscus"), ("A dumper. It carries its load.", "dumper"), ("A “Fuji” apple.", "fuji apple")),
    ],
)
def test_a_name_is_the_first_sentence_without_its_article(caption, name):
    assert name_of(caption) == name


@pytest.mark.parametrize(
    ("name", "identity", "expected"),
    [
        ("crow", "animals/birds/crow.png", ("animal", "animals", "a", "crows")),
        ("teddy bear", "animals/mammals/bears/toys/bear.png", ("object", "", "a", "teddy bears")),
        ("pliers", "household/tools/plyers.png", ("tool", "", "a pair of", "pairs of pliers")),
        ("grapes", "food/fruit/grapes.png", ("food", "", "a bunch of", "bunches of grapes")),
        ("broccoli", "food/vegetables/broccoli.png", ("food", "", "some", "")),
        ("violin", "hobbies/music/string/violin.png", ("musical instrument", "musical instruments", "a", "violins")),
    ],
)
def test_a_category_has_its_group_and_grammar(name, identity, expected):
    category = category_of(name, identity, CURATION)
    assert (category.group, category.group_plural, category.determiner, category.plural) == expected


def test_a_category_may_be_called_by_its_last_word_and_by_the_table():
    hen = category_of("brown hen", "animals/birds/hen.png", CURATION)
    assert hen.kinds == {"brown hen", "hen", "chicken"} and hen.colour == "brown"


def webp(height, width, value=128):
    return cv2.imencode(".webp", np.full((height, width, 3), value, np.uint8))[1].tobytes()


@pytest.fixture
def resources(tmp_path, make_rcc):
    folder = tmp_path / "rcc"
    folder.mkdir()
    readme = b"Copyright: Ann\nLicense: CC0-1.0\nSource: https://a.example/one\nFiles:\negypt/one.webp\n"
    readme += b"\nCopyright: Bob\nLicense: CC-BY 4.0\nother.webp\nmore.webp\nComment: cut\n"
    base = "gcompris/src/activities/monuments/resource"
    files = {f"{base}/README": readme, f"{base}/egypt/one.webp": webp(768, 1024)}
    (folder / "monuments.rcc").write_bytes(make_rcc(files, packed=frozenset({f"{base}/README"})))
    (folder / "sea.rcc").write_bytes(make_rcc({"gcompris/src/activities/sea/resource/two.webp": webp(90, 120)}))
    base = "gcompris/src/activities/farm/resource/animals"
    readme = b"Files: red_cow.webp\nLicense: Public Domain\n"
    (folder / "farm.rcc").write_bytes(make_rcc({f"{base}/README": readme, f"{base}/red_cow.webp": webp(600, 900)}))
    return folder


def test_backgrounds_keep_what_the_smallest_crop_needs_and_skip_what_is_gone(resources):
    backgrounds = {one.identity: one for one in load_backgrounds(resources, SMALL, size=96)}
    assert set(backgrounds) == {"monuments/egypt/one.webp", "sea/two.webp"}
    one = backgrounds["monuments/egypt/one.webp"]
    assert one.setting == "on a photo of a pyramid"
    assert one.pixels.shape == (160, 213, 3)  # the smallest crop is 0.6 of 160 = 96 pixels
    assert backgrounds["sea/two.webp"].pixels.shape == (90, 120, 3)


def test_photographs_are_shrunk_to_the_side_asked_for(resources):
    (photograph,) = load_photographs(resources, SMALL, max_side=300)
    assert (photograph.identity, photograph.name) == ("farm/animals/red_cow.webp", "red cow")
    assert photograph.pixels.shape == (200, 300, 3)


def test_an_unreadable_photograph_is_named(resources, make_rcc):
    (resources / "sea.rcc").write_bytes(make_rcc({"gcompris/src/activities/sea/resource/two.webp": b"no image"}))
    with pytest.raises(ValueError, match="sea/two.webp: expected a photograph"):
        load_backgrounds(resources, SMALL, size=96)


def test_attributions_come_from_the_readmes(resources):
    assert load_attributions(resources, ["farm", "monuments"]) == {
        "farm/animals/red_cow.webp": "License: Public Domain",
        "monuments/egypt/one.webp": "Copyright: Ann; License: CC0-1.0; Source: https://a.example/one",
        "monuments/other.webp": "Copyright: Bob; License: CC-BY 4.0; Comment: cut",
        "monuments/more.webp": "Copyright: Bob; License: CC-BY 4.0; Comment: cut",
    }


def test_the_tables_do_not_contradict_themselves():
    assert not set(CURATION.excluded) & set(CURATION.included)
    assert not set(CURATION.excluded) & set(CURATION.renamed)
    for name in CURATION.renamed.values():
        assert name == name_of(name) == name.lower()
    assert set(CURATION.counted_groups) <= set(CURATION.groups.values())
    photographs = [f"{activity}/{file}" for activity, files in CURATION.backgrounds.items() for file in files]
    assert len(photographs) == len(set(photographs)) == 51
    assert 8 <= sum(len(files) for files in CURATION.real.values()) <= 12


@pytest.fixture
def cache(tmp_path, stamps, resources):
    """Both packages as they lie in the cache, so that nothing is fetched."""
    folder = tmp_path / "cache"
    for package, inside, source in (
        (STAMPS_PACKAGE, "usr/share/tuxpaint/stamps", stamps),
        (PHOTOS_PACKAGE, "usr/share/gcompris-qt/rcc", resources),
    ):
        target = folder / package / inside
        target.parent.mkdir(parents=True)
        source.rename(target)
        (folder / package / "VERSION").write_text(CURATED_VERSIONS[package])
    return folder


def run(tmp_path, cache, monkeypatch, *more):
    monkeypatch.setattr(prepare_stampworld, "CURATION", SMALL)
    numbers = "--num-names 3 --num-novel 2 --num-train 3 --num-val 2 --size 96 --objects 1 3 --workers 1"
    prepare_stampworld.main(["--output", str(tmp_path / "world"), "--cache", str(cache), *numbers.split(), *more])
    return tmp_path / "world"


def test_the_program_writes_scenes_real_photographs_and_licences(tmp_path, cache, monkeypatch, capsys):
    world = run(tmp_path, cache, monkeypatch)
    assert {path.name for path in world.iterdir()} == {
        *("train", "val", "val_novel", "real", "annotations", "manifest.json", "LICENSES.md")
    }
    real = json.loads((world / "annotations" / "real.json").read_text("utf-8"))
    assert real["annotations"] == [] and real["categories"] == [{"id": 1, "name": "red cow"}]
    (image,) = real["images"]
    assert (image["file_name"], image["names"], image["width"], image["height"]) == (
        "red_cow.jpg",
        ["red cow"],
        800,
        533,
    )
    assert cv2.imread(str(world / "real" / "red_cow.jpg")).shape == (533, 800, 3)

    licences = (world / "LICENSES.md").read_text("utf-8")
    assert "- animals/crow.png" in licences and "GPL-2" in licences and STAMPS_PACKAGE + " 2022" in licences
    assert "- monuments/egypt/one.webp: Copyright: Ann; License: CC0-1.0" in licences
    assert "- sea/two.webp: not listed" in licences and "- farm/animals/red_cow.webp: License: Public" in licences

    train = json.loads((world / "annotations" / "train.json").read_text("utf-8"))
    assert "composites of real photographs, not real scenes" in train["info"]["description"]
    assert all("on a photo of a" in image["caption"] for image in train["images"])
    capsys.readouterr()
    run(tmp_path, cache / "elsewhere", monkeypatch)  # finished: the packages are not even looked for
    assert "there already" in capsys.readouterr().out


def test_changed_tables_build_the_data_set_again(tmp_path, cache, monkeypatch, capsys):
    run(tmp_path, cache, monkeypatch)
    monkeypatch.setitem(SMALL.renamed, "animals/crow.png", "raven")
    monkeypatch.setitem(SMALL.real, "farm", {})
    world = run(tmp_path, cache, monkeypatch)
    assert "source_version" in capsys.readouterr().out
    names = json.loads((world / "manifest.json").read_text("utf-8"))["names"]
    assert "raven" in names["train"] + names["val_novel"]
    assert not (world / "real").exists() and not (world / "annotations" / "real.json").exists()


def test_another_version_of_a_package_is_pointed_out(tmp_path, cache, monkeypatch, capsys):
    (cache / PHOTOS_PACKAGE / "VERSION").write_text("9.9\n")
    run(tmp_path, cache, monkeypatch)
    assert f"{PHOTOS_PACKAGE} is version 9.9" in capsys.readouterr().out


def test_a_package_without_its_folder_is_an_error_of_one_line(tmp_path, cache, monkeypatch):
    (cache / PHOTOS_PACKAGE / "usr/share/gcompris-qt/rcc").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="^error: .*gcompris-qt/rcc: expected this folder in the package, found none$"):
        run(tmp_path, cache, monkeypatch)
    assert not (tmp_path / "world").exists()
