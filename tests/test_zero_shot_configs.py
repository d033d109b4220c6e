from pathlib import Path

import pytest
import yaml
from conftest import ASSETS
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from glipv2_d2 import add_glipv2_config
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS, dataset_of_set

CONFIGS = ASSETS.parents[1] / "configs"
FILES = {path.stem: path for path in sorted((CONFIGS / "zero_shot").glob("*.yaml"))}
SUITES = ["coco", "flickr30k", "lvis_minival", "lvis_val", "odinw13", "odinw35", "phrasecut", "refcoco"]


def load(path: Path):
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def test_there_is_a_config_for_each_suite():
    assert list(FILES) == SUITES


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_registered_data_and_a_folder_of_its_own(name):
    cfg = load(FILES[name])
    assert cfg.DATASETS.TEST and set(cfg.DATASETS.TEST) <= set(DatasetCatalog.list())
    assert len(set(cfg.DATASETS.TEST)) == len(cfg.DATASETS.TEST)
    assert cfg.OUTPUT_DIR == f"output/zero_shot/{name}"


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_says_nothing_of_the_architecture_but_whether_there_are_masks(name):
    # Whatever stands in its place as _BASE_ is evaluated by the same protocol.
    own = yaml.safe_load(FILES[name].read_text())
    assert own.pop("_BASE_") == "../glip/glip_swin_t_c.yaml"
    model = own.pop("MODEL", {})
    assert set(own) <= {"DATASETS", "TEST", "OUTPUT_DIR"} and set(own["DATASETS"]) == {"TEST"}
    assert set(model) <= {"MASK_ON", "GLIPV2"} and set(model.get("GLIPV2", {})) <= {"TEST"}
    assert load(FILES[name]).MODEL.MASK_ON is (name == "phrasecut")


@pytest.mark.parametrize("name", ["lvis_val", "lvis_minival"])
def test_lvis_has_the_official_protocol(name):
    cfg = load(FILES[name])
    test = cfg.MODEL.GLIPV2.TEST
    limits = (test.PROMPT_CHUNK_SIZE, test.DETECTIONS_PER_PROMPT, cfg.TEST.DETECTIONS_PER_IMAGE)
    assert limits == (40, 300, 0) and tuple(cfg.TEST.LVIS_PROTOCOLS) == ("standard", "fixed")


@pytest.mark.parametrize(("name", "keys"), [("odinw13", ODINW_13), ("odinw35", tuple(ODINW_SETS))])
def test_odinw_is_tested_on_all_its_sets(name, keys):
    assert load(FILES[name]).DATASETS.TEST == tuple(dataset_of_set(key, "test") for key in keys)


def test_another_architecture_takes_the_place_of_the_base(tmp_path):
    # As docs/zero_shot.md says.
    text = FILES["lvis_minival"].read_text()
    other = str(CONFIGS / "glip" / "glip_swin_l.yaml")
    (tmp_path / "large.yaml").write_text(text.replace("../glip/glip_swin_t_c.yaml", other))
    cfg = load(tmp_path / "large.yaml")
    assert cfg.MODEL.SWIN.EMBED_DIM == 192 and cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE == 40
