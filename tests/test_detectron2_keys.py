"""Every key of detectron2 is honoured or refused, never ignored."""

import pytest
from conftest import load_config
from detectron2.config import CfgNode, get_cfg
from test_house_rules import config_readers, parse, read_chains

from glipv2_d2.detectron2_keys import HONOURED_BY_DETECTRON2, HONOURED_HERE, REFUSED, check_config, way_out_of
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.errors import InputError


def leaves(node, prefix=""):
    for name, value in node.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [(prefix + name, value)]


KEYS = dict(leaves(get_cfg()))


def owner_of(key):
    return max((one for one in (*HONOURED_HERE, *HONOURED_BY_DETECTRON2, *REFUSED) if key.startswith(one)), key=len)


def changed(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else value + "x" if isinstance(value, str) else ["x"]


def test_every_key_of_detectron2_has_its_place_and_every_place_a_key():
    used = {owner_of(key) for key in KEYS}
    assert used == {*HONOURED_HERE, *HONOURED_BY_DETECTRON2, *REFUSED}
    assert len(used) == len(HONOURED_HERE) + len(HONOURED_BY_DETECTRON2) + len(REFUSED)
    with pytest.raises(KeyError, match="MODEL.NEW"):
        way_out_of("MODEL.NEW")


def test_keys_that_are_said_to_be_honoured_here_are_read():
    chains = set().union(*(read_chains(parse(file)) for file in config_readers()))
    endings = {".".join(chain[-2:]) for chain in chains} | {".".join(chain) for chain in chains}
    own = [key for key in KEYS if owner_of(key) in HONOURED_HERE]
    assert [key for key in own if ".".join(key.split(".")[-2:]) not in endings] == []


@pytest.mark.parametrize("key", [key for key in KEYS if way_out_of(key)])
def test_a_refused_key_is_named_with_the_way_out(key):
    cfg = load_config("models/glipv2_swin_t.yaml")
    check_config(cfg)
    *nodes, name = key.split(".")
    node = cfg
    for part in nodes:
        node = node[part]
    # In code a config takes any value; a file could only give one of the same type.
    node[name] = changed(KEYS[key])
    with pytest.raises(InputError) as caught:
        check_config(cfg)
    message = str(caught.value)
    assert message.startswith(f"{key}: expected ") and message.endswith(f"; {way_out_of(key)}") and "\n" not in message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["INPUT.MASK_FORMAT", "bitmask"], "INPUT.MASK_FORMAT: expected .*'polygon', found 'bitmask'"),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "META_ARCHITECTURE: expected 'GLIPv2' or 'DyHead', found 'RetinaNet'",
        ),
    ],
)
def test_a_command_line_checks_its_config(keys, message):
    with pytest.raises(InputError, match=message):
        build_config("", ["MODEL.META_ARCHITECTURE", "GLIPv2", "MODEL.DEVICE", "cpu", *keys])


def test_a_resnet_has_its_keys():
    cfg = load_config("models/glipv2_swin_t.yaml")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEPTH = "build_retinanet_resnet_fpn_backbone", 101
    assert check_config(cfg) is None
    cfg.MODEL.ANCHOR_GENERATOR.ANGLES = ((-90, 0, 90),)  # A tuple for a list is no change.
    check_config(cfg)


def test_of_several_beginnings_of_a_key_the_longest_counts():
    assert way_out_of("MODEL.ANCHOR_GENERATOR.SIZES") is None
    assert way_out_of("MODEL.ANCHOR_GENERATOR.ANGLES") == REFUSED["MODEL.ANCHOR_GENERATOR.ANGLES"]
    assert way_out_of("MODEL.ROI_HEADS.NUM_CLASSES") == REFUSED["MODEL.ROI_HEADS.NUM_CLASSES"]
    assert way_out_of("MODEL.ROI_HEADS.NAME") == REFUSED["MODEL.ROI_"]
