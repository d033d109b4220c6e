from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scenes.composer import Background, Category, SceneRules, compose_scene
from scenes.wide_names import Lexicon, wide_category
from scenes.wide_splits import WideName, WideParameters, kin_of, plan_wide_splits, relatives_of
from scenes.wordnet import WordNet

GROUNDS = [Background(f"g{index}", "on a photo of a wall", np.zeros((64, 64, 3), np.uint8)) for index in range(2)]
ANIMALS = ("dog", "poodle", "puppy", "bird", "crow", "owl", "fox", "mouse")


def parameters(**changes) -> WideParameters:
    values = {"num_names": None, "num_novel": 2, "num_train": 4, "num_val": 2, "seed": 0, "num_held_looks": 2}
    return WideParameters("wideworld", "1", **(values | {"held_source": "clip art"} | changes))


@pytest.fixture
def lexicon(make_wordnet) -> Lexicon:
    return Lexicon(WordNet(make_wordnet()))


@pytest.fixture
def names(lexicon, make_cut_out) -> list[WideName]:
    """Each animal with three emoji and a piece of clip art; fox is one of StampWorld's names."""
    found = []
    for name in ANIMALS:
        sense = lexicon.sense_of(name, ("animal",))
        category = wide_category(name, sense, lexicon, ANIMALS, None)
        cut_outs = {"emoji": [make_cut_out(f"{name} {number}") for number in range(3)]}
        cut_outs["clip art"] = [make_cut_out(f"{name} drawn")]
        found.append(WideName(category, sense, cut_outs, is_fixed=name == "fox"))
    return found


def planned(names, lexicon, **changes):
    splits = plan_wide_splits(names, (GROUNDS[:1], GROUNDS[1:]), parameters(**changes), lexicon)
    return {split.name: split for split in splits}


@pytest.mark.parametrize("seed", range(8))
def test_no_look_is_in_two_splits_and_no_unseen_name_or_kind_of_it_in_train(names, lexicon, seed):
    splits = planned(names, lexicon, seed=seed)
    looks = Counter(one.identity for split in splits.values() for some in split.cut_outs.values() for one in some)
    assert set(looks.values()) == {1}
    train, unseen = splits["train"], set(splits["val_names"].cut_outs)
    assert len(unseen) == 2 and "fox" in train.cut_outs and unseen.isdisjoint(train.cut_outs)
    if "dog" in unseen:
        assert not {"poodle", "puppy"} & set(train.cut_outs)
    if "bird" in unseen:
        assert not {"crow", "owl"} & set(train.cut_outs)
    assert set(splits["val_looks"].cut_outs) | set(splits["val_source"].cut_outs) <= set(train.cut_outs)
    assert all(one.identity.endswith("drawn.png") for some in splits["val_source"].cut_outs.values() for one in some)
    assert not any(one.identity.endswith("drawn.png") for some in train.cut_outs.values() for one in some)
    assert train.backgrounds == GROUNDS[:1] and splits["val_names"].backgrounds == GROUNDS[1:]


@pytest.mark.parametrize("seed", range(4))
def test_no_two_names_of_a_val_split_may_be_said_of_one_object(names, lexicon, seed):
    for split in list(planned(names, lexicon, seed=seed, num_held_looks=8).values())[1:]:
        for pair in ({"dog", "poodle"}, {"dog", "puppy"}, {"bird", "crow"}, {"bird", "owl"}):
            assert not pair <= set(split.cut_outs)


@pytest.mark.parametrize("seed", range(8))
def test_no_relative_of_a_name_of_stampworld_is_unseen(names, lexicon, seed):
    names = [replace(one, is_fixed=one.category.name == "poodle") for one in names]
    splits = planned(names, lexicon, seed=seed)
    assert "poodle" in splits["train"].cut_outs and not {"dog", "poodle"} & set(splits["val_names"].cut_outs)


@pytest.mark.parametrize("seed", range(8))
def test_a_name_gives_a_look_away_if_it_has_three_and_is_trained_on_if_another_collection_shows_it(
    names, lexicon, seed
):
    looks = {one.category.name: dict(one.cut_outs) for one in names}
    looks["crow"]["emoji"] = looks["crow"]["emoji"][:2]
    del looks["owl"]["emoji"]
    names = [replace(one, cut_outs=looks[one.category.name]) for one in names]
    splits = planned(names, lexicon, seed=seed, num_held_looks=8)
    assert "crow" not in splits["val_looks"].cut_outs
    assert not any("owl" in split.cut_outs for name, split in splits.items() if name != "val_names")


def test_looks_and_names_are_as_many_as_asked_for(names, lexicon):
    for seed in range(8):
        splits = planned(names, lexicon, max_looks=1, num_names=3, num_held_looks=1, seed=seed)
        assert {len(some) for some in splits["train"].cut_outs.values()} == {1} and len(splits["train"].cut_outs) == 3
        assert "fox" in splits["train"].cut_outs  # StampWorld's names come first
        assert [len(some) for some in splits["val_looks"].cut_outs.values()] == [1]
    with pytest.raises(ValueError, match="num_novel: expected at most 5, the unrelated names, found 8"):
        planned(names, lexicon, num_novel=8)
    with pytest.raises(ValueError, match="max_looks: expected at least 1, found 0"):
        parameters(max_looks=0)


def test_relatives_may_be_said_of_one_object_and_kin_may_not(names):
    categories = [one.category for one in names]
    relatives = relatives_of(categories)
    assert relatives["crow"] == {"bird"} and relatives["bird"] == {"crow", "owl"}
    assert relatives["fox"] == set()
    people = [Category(name, "person", "people", "a", f"{name}s", frozenset({name})) for name in ("pirate", "guard")]
    assert relatives_of([*categories, *people])["pirate"] == {"guard"}
    kin = kin_of(categories, relatives)
    assert kin["crow"] == ("owl",) and kin["bird"] == ()


def test_half_of_the_scenes_have_names_of_one_parent(make_cut_out):
    cut_outs = {
        f"{kind} {number}": [make_cut_out(f"{kind} {number}")] for kind in ("bird", "tool") for number in range(10)
    }
    kin = {name: tuple(one for one in cut_outs if one[:4] == name[:4] and one != name) for name in cut_outs}
    rules = SceneRules(size=64, min_objects=3, max_objects=3, repeat_probability=0)
    same = 0
    for seed in range(200):
        scene = compose_scene(np.random.default_rng(seed), cut_outs, GROUNDS[:1], rules, kin)
        placed = (*scene.labelled, *scene.hidden)
        assert len({one.cut_out.category.name for one in placed}) == 3
        same += len({one.cut_out.category.name[:4] for one in placed}) == 1
    # Half of them by kin, and 21 % of the others by chance: 2 * (10 * 9 * 8) / (20 * 19 * 18).
    assert 0.5 < same / 200 < 0.7
