"""Damaged configs and odd values of keys: a config, or one line that says why not."""

from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS
from damaged_json import damaged
from detectron2.config import CfgNode, get_cfg
from fuzzing import ODD_VALUES, assert_holds_for_random_input, changed_bytes
from hypothesis import strategies as st

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.engine.command_line import build_config

FILES = sorted(CONFIGS.rglob("*.yaml"))
EXTRA_LINES = (
    *("_BASE_: fuzzed.yaml", "_BASE_: ''", "_BASE_: [a.yaml]", "_BASE_: /", "_BASE_: ~", "_BASE_: 3", "_BASE_: ."),
    *("VERSION: 1", "VERSION: 3", "MODEL: 3", "MODEL:", "SOLVER: []", "? [a]\n: b", "!!python/object:os.system x"),
    *("a: &a [*a]", "a: &a [1]\nb: *a", "<<: {MODEL: 1}", "---\nb: 1", "%YAML 9.9\n---", "\t", "MODEL: {MODEL: {}}"),
    *("DATASETS: {TRAIN: !!set {a}}", "SEED: 2001-01-01", "SEED: 0x10", "SEED: 1_000", "SEED: 1:30", "SEED: .nan"),
)


def all_keys() -> list[str]:
    """Every key of the config, with its nodes."""
    cfg = get_cfg()
    add_glipv2_config(cfg)

    def below(node: CfgNode, name: str) -> list[str]:
        nodes = {f"{name}{key}": value for key, value in node.items() if isinstance(value, CfgNode)}
        return [f"{name}{key}" for key in node] + [one for key in nodes for one in below(nodes[key], f"{key}.")]

    return below(cfg, "")


@pytest.mark.slow
def test_damaged_configs_are_built_or_refused_in_one_line(tmp_path):
    keys = all_keys()
    yaml_values = ODD_VALUES.filter(lambda value: not isinstance(value, str) or "\ud800" not in value)

    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(FILES))
        text = file.read_text()
        content = yaml.safe_load(text)
        if "_BASE_" in content:
            content["_BASE_"] = str(file.parent / content["_BASE_"])
        for _ in range(data.draw(st.integers(0, 3))):
            content = damaged(data, {"file": content}, yaml_values)["file"]
            if not isinstance(content, dict):
                break
        text = yaml.safe_dump(content, allow_unicode=data.draw(st.booleans()))
        for line in data.draw(st.lists(st.sampled_from(EXTRA_LINES), max_size=1)):
            text = f"{text}{line}\n" if data.draw(st.booleans()) else f"{line}\n{text}"
        encoded = text.encode("utf-8", "surrogatepass")
        path: Path = tmp_path / "fuzzed.yaml"
        path.write_bytes(changed_bytes(data, encoded) if data.draw(st.integers(0, 2)) == 0 else encoded)
        pairs = st.tuples(st.sampled_from(keys) | st.text(max_size=9), st.text(max_size=9) | ODD_VALUES.map(str))
        opts = [word for pair in data.draw(st.lists(pairs, max_size=2)) for word in pair]
        build_config(str(path), opts)

    assert_holds_for_random_input(check)
