import importlib
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.datasets import builtin


@pytest.mark.parametrize("world", ["stampworld", "shapeworld"])
@pytest.mark.parametrize("split", ["train", "val", "val_24", "val_novel"])
def test_every_split_is_registered_and_read_only_when_used(world, split, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    metadata = MetadataCatalog.get(f"{world}_{split}")
    assert metadata.json_file.endswith(os.path.join(world, "annotations", f"{split}.json"))
    assert metadata.image_root.endswith(os.path.join(world, split))
    assert metadata.evaluator_type == "coco" and metadata.get("thing_classes") is None
    if not os.path.exists(metadata.json_file):
        with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
            DatasetCatalog.get(f"{world}_{split}")


def test_root_is_the_variable_of_detectron2(monkeypatch, tmp_path):
    for catalog in (DatasetCatalog, MetadataCatalog):
        kept = {name: entry for name, entry in catalog.data.items() if "world" not in name}
        monkeypatch.setattr(catalog, "data", kept)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    importlib.reload(builtin)
    expected = str(tmp_path / "stampworld" / "annotations" / "val.json")
    assert MetadataCatalog.get("stampworld_val").json_file == expected
