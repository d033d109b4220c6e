"""One set in several formats is one set, bit for bit."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from own_set_writers import Photo, write_coco, write_labelme, write_voc, write_yolo

from glipv2_d2.data.own_sets import find_own_sets

NAMES = ["Zebra", "cat", "red dog", "unused"]
WRITERS = [write_coco, write_voc, write_yolo, write_labelme]


@st.composite
def photos(draw, prefix: str):
    found = []
    for i in range(draw(st.integers(1, 4))):
        width, height = draw(st.integers(20, 1300)), draw(st.integers(20, 1300))
        objects = []
        for _ in range(draw(st.integers(0, 4))):
            left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
            objects.append((draw(st.sampled_from(NAMES[:3])), left, top, right, bottom))
        suffix = draw(st.sampled_from([".png", ".PNG"]))
        found.append(Photo(f"{prefix} {draw(st.integers(0, 99))}_{i}{suffix}", width, height, objects))
    return found


def texts(root):
    own = find_own_sets(root)
    return own.names, own.seed, {split: one.json_text() for split, one in own.splits.items()}


# Without the search for the smallest example, which takes minutes.
@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(train=photos("a"), val=photos("b"))
def test_a_set_has_one_form_whatever_the_format(tmp_path_factory, train, val):
    train[0].objects.append(("cat", 1, 2, 11, 13))
    folder = tmp_path_factory.mktemp("set")
    first, *others = (
        texts(writer(folder / str(i) / "mine", {"train": train, "val": val}, NAMES)) for i, writer in enumerate(WRITERS)
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_form_is_that_of_coco(tmp_path, writer):
    train = [Photo("b.png", 60, 40, [("red dog", 10, 5, 30, 25), ("cat", 0, 0, 60, 40)]), Photo("a.png", 30, 30, [])]
    own = find_own_sets(writer(tmp_path / "mine", {"train": train, "val": [train[0]._replace(name="c.png")]}, NAMES))
    assert own.name == "mine" and own.names == ["cat", "red dog"] and own.seed is None
    content = own.splits["train"].content
    assert content["images"] == [
        {"id": 1, "file_name": "a.png", "height": 30, "width": 30},
        {"id": 2, "file_name": "b.png", "height": 40, "width": 60},
    ]
    assert [row["name"] for row in content["categories"]] == own.names
    assert content["annotations"] == [
        {"id": 1, "image_id": 2, "category_id": 1, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [10, 5, 20, 20], "area": 400, "iscrowd": 0},
    ]


def test_broken_images_and_a_made_split_are_the_same_in_all_forms(tmp_path):
    found = []
    for number, writer in enumerate(WRITERS):
        photos = [Photo(f"{i}.png", 50, 40, [("cat", 1 + i, 2, 31, 32)]) for i in range(12)]
        root = writer(tmp_path / str(number) / "mine", {"train": photos}, NAMES)
        for stem in (0, 2, 5, 7, 9):
            (path,) = root.rglob(f"{stem}.png")
            path.write_text("version https://git-lfs.github.com/spec/v1")
        (path,) = root.rglob("8.png")
        path.write_bytes(path.read_bytes()[:-20])
        names, seed, splits = texts(root)
        assert names == ["cat"] and seed == 0 and "7.png" not in "".join(splits.values())
        found.append(splits)
    assert all(one == found[0] for one in found) and '"8.png"' in "".join(found[0].values())
