"""The list of config keys is complete, and the page in ``docs/`` is the newest."""

import ast
from pathlib import Path

import list_config_keys
from detectron2.config import CfgNode, get_cfg

from glipv2_d2 import add_glipv2_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config_keys.md"


def leaves(node: CfgNode, path: str = "") -> dict[str, object]:
    found = {}
    for name, value in node.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, CfgNode) else {path + name: value}
    return found


def test_every_key_of_the_package_is_listed_with_its_default():
    cfg = get_cfg()
    before = leaves(cfg)
    add_glipv2_config(cfg)
    rows = list_config_keys.read_rows(list_config_keys.SOURCE.read_text(encoding="utf-8"))
    listed = {name: ast.literal_eval(default) for row in rows for name, default in row.keys}
    after = leaves(cfg)
    assert set(after) - set(before) <= set(listed)
    assert {name: after[name] for name in listed} == listed


def test_a_comment_explains_the_keys_up_to_the_next_comment():
    source = """
def f(cfg):
    # A part.
    cfg.A = CN()
    cfg.A.B = 1
    # Two keys | one comment,
    # on two lines.
    cfg.A.C = "x"
    cfg.A.D = ()
"""
    rows = list_config_keys.read_rows(source)
    assert rows == [
        (["A part."], []),
        ([], [("A.B", "1")]),
        (["Two keys | one comment,", "on two lines."], [("A.C", '"x"'), ("A.D", "()")]),
    ]
    text = list_config_keys.as_markdown(rows)
    assert text.count("## A\n\nA part.\n") == 1
    assert '| `A.C`<br>`A.D` | `"x"`<br>`()` | Two keys \\| one comment, on two lines. |' in text
    # What the section says is not repeated.
    assert "| `A.B` | `1` | see above |" in text


def test_keys_of_one_node_are_one_section_wherever_they_stand():
    rows = list_config_keys.read_rows(
        """
    # First.
    cfg.A.B = 1
    # Second.
    cfg.C.D = 2
    # Third.
    cfg.A.E = 3

    # Of the rest.

    # Fourth.
    cfg.A.F = 4
"""
    )
    text = list_config_keys.as_markdown(rows).removeprefix(list_config_keys.HEAD)
    head = "| key | default | what it does |\n| --- | --- | --- |\n"
    rest = f"Of the rest.\n\n{head}| `A.F` | `4` | Fourth. |\n"
    assert text == (
        f"\n## A\n\n{head}| `A.B` | `1` | First. |\n| `A.E` | `3` | Third. |\n\n{rest}"
        f"\n## C\n\n{head}| `C.D` | `2` | Second. |\n"
    )


def test_the_page_is_made_from_the_source():
    rows = list_config_keys.read_rows(list_config_keys.SOURCE.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == list_config_keys.as_markdown(rows)
