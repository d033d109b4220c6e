import hashlib
import io
import tarfile

import cv2
import numpy as np
import pytest
from scenes.debian_packages import PackageError
from scenes.npm_packages import KnownFile, check_file, fetch_npm_package
from scenes.wide_sources import (
    decode,
    find_clip_art,
    find_drawn_stamps,
    find_emoji_files,
    find_flash_cards,
    find_word_pictures,
    without_ground,
)
from scenes.wide_world import is_fair

DISC = np.zeros((120, 120, 4), np.uint8)
cv2.circle(DISC, (60, 60), 50, (40, 90, 220, 255), -1)
cv2.circle(DISC, (60, 60), 20, (40, 220, 90, 255), -1)


def save(folder, path, pixels=DISC) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / path), pixels)


def said(looks) -> dict[str, tuple[str, ...]]:
    return {f"{look.identity}: {look.text}": look.kinds for look in looks}


def test_clip_art_comes_from_folders_of_things(tmp_path):
    for path in ("animals/birds/crow_01.png", "recreation/games/cards/ace.png", "signs_and_symbols/stop.png"):
        save(tmp_path, path)
    assert said(find_clip_art(tmp_path)) == {"clip art/animals/birds/crow_01.png: crow": ("animal",)}
    (look,) = find_clip_art(tmp_path)
    assert (look.read() == DISC).all()


def test_emoji_are_named_by_their_code_point_without_skin_tones(tmp_path):
    for name in ("1f436", "1f98a", "1f44d-1f3fb", "1f527"):
        save(tmp_path, f"{name}.webp")
    assert said(find_emoji_files(tmp_path, "emoji")) == {
        "emoji/1f436: dog": ("animal",),  # the standard's "dog face"
        "emoji/1f98a: fox": ("animal",),
        "emoji/1f527: wrench": ("artifact", "object", "food", "plant"),
    }


def test_word_pictures_and_drawn_stamps_have_their_words(tmp_path, make_rcc):
    picture = cv2.imencode(".webp", DISC)[1].tobytes()
    files = {"gcompris/lang/resource/words_sample/hot_dog.webp": picture, "gcompris/lang/resource/frame.svg": b""}
    (tmp_path / "lang.rcc").write_bytes(make_rcc(files))
    (look,) = find_word_pictures(tmp_path / "lang.rcc", "lang")
    assert (look.identity, look.text) == ("flash cards/lang/words_sample/hot_dog.webp", "hot dog")
    assert look.read().shape == (120, 120, 4)

    from scenes.curation import CURATION

    for path in ("animals/crow.png", "animals/photo.png", "flags/red.png", "animals/untold.png"):
        save(tmp_path / "stamps", path)
    for path in ("animals/crow", "animals/photo", "flags/red"):
        (tmp_path / "stamps" / f"{path}.txt").write_text("A thing (of some kind).\n")
    stamps = said(find_drawn_stamps(tmp_path / "stamps", CURATION, {"animals/photo.png"}))
    assert stamps == {"drawn stamps/animals/crow.png: thing": ("animal",)}


def card(with_arrow: bool) -> np.ndarray:
    pixels = np.full((200, 200, 3), 255, np.uint8)
    cv2.circle(pixels, (120, 120), 60, (40, 90, 220), -1)
    cv2.circle(pixels, (120, 120), 20, (255, 255, 255), -1)
    cv2.rectangle(pixels, (10, 10), (13, 30), (0, 0, 0), -1)
    if with_arrow:
        cv2.rectangle(pixels, (20, 20), (50, 40), (140, 0, 230), -1)
    return pixels


def test_the_white_ground_of_a_flash_card_becomes_transparent_and_the_white_inside_stays(tmp_path):
    save(tmp_path, "animals/crow.jpg", card(with_arrow=False))
    (look,) = find_flash_cards(tmp_path, ())
    assert list(find_flash_cards(tmp_path, {"crow"})) == []  # another package has the same drawing
    alpha = look.read()[:, :, 3]
    assert alpha[0, 0] == 0 and alpha[20, 11] == 0  # the ground, and a stroke beside the thing
    assert alpha[120, 120] == 255 and alpha[120, 80] == 255
    opaque = np.dstack([card(with_arrow=False), np.full((200, 200), 255, np.uint8)])
    expected = np.hypot(*np.mgrid[-120:80, -120:80]) <= 59
    assert (without_ground(opaque)[:, :, 3] > 0)[expected].all()


def test_a_flash_card_with_an_arrow_at_a_part_shows_nothing(tmp_path):
    save(tmp_path, "animals/crow.jpg", card(with_arrow=True))
    (look,) = find_flash_cards(tmp_path, ())
    assert look.read()[:, :, 3].max() == 0


MIXED, FADED = np.full((21, 31, 3), 60, np.uint8), np.full((21, 31, 3), (0, 0, 230), np.uint8)
MIXED[:, :9] = (140, 0, 230)
FADED[:, :, 0] = np.linspace(0, 230, 31)


@pytest.mark.parametrize("part", [MIXED, FADED], ids=["little of a strong colour", "many strong colours"])
def test_of_two_things_on_a_flash_card_the_larger_is_shown(tmp_path, part):
    pixels = card(with_arrow=False)
    pixels[20:41, 20:51] = part
    save(tmp_path, "animals/crow.jpg", pixels)
    (look,) = find_flash_cards(tmp_path, ())
    alpha = look.read()[:, :, 3]
    assert alpha[30, 35] == 0 and alpha[120, 80] == 255


@pytest.mark.parametrize(
    ("pixels", "side", "first"),
    [
        (np.full((4, 4), 7, np.uint8), 4, [7, 7, 7, 255]),
        (np.full((4, 4, 3), (1, 2, 3), np.uint8), 4, [1, 2, 3, 255]),
        (np.full((4, 4, 4), (1, 2, 3, 4), np.uint8), 4, [1, 2, 3, 4]),
        # 16 bits, of which the upper eight count.
        (np.full((4, 4, 4), (0x1234, 0x5678, 0x9ABC, 0xFFFF), np.uint16), 4, [0x12, 0x56, 0x9A, 255]),
        (np.full((639, 639), 7, np.uint8), 639, [7, 7, 7, 255]),
        (np.full((641, 641), 7, np.uint8), 321, [7, 7, 7, 255]),
    ],
)
def test_pictures_of_every_depth_become_colours_with_alpha_and_large_ones_are_thinned_out(pixels, side, first):
    found = decode(cv2.imencode(".png", pixels)[1].tobytes(), "a.png")
    assert found.shape == (side, side, 4) and found.dtype == np.uint8 and found[0, 0].tolist() == first


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_picture_that_cannot_be_read_is_named(content):
    with pytest.raises(ValueError, match="a.png: expected an image, found a file that cannot be read as one"):
        decode(content, "a.png")


def one_colour(colour) -> np.ndarray:
    return np.where(DISC[:, :, 3:] > 0, np.array([*colour, 255], np.uint8), DISC)


GREY = DISC.copy()
GREY[:, :, :3] = np.linspace(0, 255, 120).astype(np.uint8)[:, None]
THIN = np.zeros((120, 120, 4), np.uint8)
cv2.line(THIN, (0, 0), (119, 119), (40, 90, 220, 255))
cv2.line(THIN, (119, 0), (0, 119), (40, 220, 90, 255))
OUTLINE = np.zeros((120, 120, 4), np.uint8)
cv2.circle(OUTLINE, (60, 60), 50, (255, 255, 255, 255), -1)
cv2.circle(OUTLINE, (60, 60), 50, (0, 0, 0, 255), 4)


@pytest.mark.parametrize(
    ("pixels", "fair"),
    [
        (DISC, True),
        (one_colour((0, 0, 0)), False),  # a silhouette
        (OUTLINE, False),  # line art
        (GREY, True),  # shaded
        (THIN, False),  # little of its box
        (DISC[20:100, 20:100], False),  # too small
        (np.dstack([DISC[:, :, :3], np.full((120, 120), 255, np.uint8)]), False),  # a picture with its ground
        (np.zeros_like(DISC), False),
    ],
)
def test_a_fair_picture_is_a_coloured_thing_on_a_transparent_ground(pixels, fair):
    assert is_fair(pixels) == fair


def package(folder, member="package/a.txt") -> KnownFile:
    with tarfile.open(folder / "fruit.tgz", "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = 6
        archive.addfile(info, io.BytesIO(b"apples"))
    content = (folder / "fruit.tgz").read_bytes()
    return KnownFile("1.0", len(content), hashlib.sha256(content).hexdigest())


def test_a_package_file_at_hand_is_checked_unpacked_once_and_kept(tmp_path):
    known = package(tmp_path)
    folder = fetch_npm_package("@some/fruit", known, tmp_path / "cache", tmp_path / "fruit.tgz")
    assert (folder / "package" / "a.txt").read_text() == "apples" and (tmp_path / "fruit.tgz").is_file()
    (tmp_path / "fruit.tgz").unlink()
    assert fetch_npm_package("@some/fruit", known, tmp_path / "cache") == folder  # there already: nothing is called


def test_a_package_of_the_client_is_checked_too_and_its_file_is_not_kept(tmp_path, monkeypatch):
    known = package(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "npm").write_text(f'#!/bin/sh\ncp {tmp_path}/fruit.tgz "$4" && echo fruit.tgz\n')
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(PackageError, match="fruit.tgz: expected sha256 00 .version 1.0., found "):
        fetch_npm_package("fruit", known._replace(sha256="00"), tmp_path / "cache")
    assert not (tmp_path / "cache" / "fruit").exists()
    folder = fetch_npm_package("fruit", known, tmp_path / "cache")
    assert (folder / "package" / "a.txt").is_file() and not list((tmp_path / "cache").rglob("*.tgz"))


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt"])
def test_a_package_cannot_write_outside_of_its_folder(tmp_path, member):
    known = package(tmp_path, member)
    if member.startswith("/"):  # a leading slash is dropped, as tar does
        fetch_npm_package("fruit", known, tmp_path / "cache", tmp_path / "fruit.tgz")
        assert (tmp_path / "cache" / "fruit" / "tmp" / "outside.txt").is_file()
    else:
        with pytest.raises(PackageError, match="expected a package of npm, found another file"):
            fetch_npm_package("fruit", known, tmp_path / "cache", tmp_path / "fruit.tgz")
        assert not (tmp_path / "cache" / "fruit").exists()


def test_another_file_is_refused_by_its_size(tmp_path):
    known = package(tmp_path)
    (tmp_path / "fruit.tgz").write_bytes(b"short")
    with pytest.raises(PackageError, match=f"expected version 1.0 with {known.size} bytes, found 5 bytes"):
        check_file(tmp_path / "fruit.tgz", known)
    with pytest.raises(PackageError, match="none.tgz: expected the file of a package, found none"):
        check_file(tmp_path / "none.tgz", known)
