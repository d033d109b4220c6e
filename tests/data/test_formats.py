"""What the registration of all formats has in common: metadata, names, and files that are looked for when used."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.datasets.formats import FORMATS, register
from glipv2_d2.errors import InputError

# A format whose files the reader itself looks for.
OTHER = "shards"


def sources_in(folder: Path, format_name: str) -> dict:
    """Sources of a format, of which files and folders are there."""
    options = {"split": "val", "splits": (), "leave_out_ids": False, "odinw_set": None, "num_samples": None}
    sources = {field: options.get(field, folder / field) for field in FORMATS[format_name].sources}
    for field, path in sources.items():
        if field not in options:
            path.mkdir() if field.endswith("_root") else path.write_text("{}")
    return {field: [path] if field == "images_files" else path for field, path in sources.items()}


@pytest.mark.parametrize("format_name", FORMATS)
def test_metadata_hold_the_sources_and_nothing_is_read_at_once(new_name, tmp_path, format_name):
    (tmp_path / "files").mkdir()
    sources = sources_in(tmp_path / "files", format_name)
    (tmp_path / "files").rename(tmp_path / "gone")
    one = FORMATS[format_name]
    register(format_name, new_name, {"note": "old"}, **sources)
    metadata = MetadataCatalog.get(new_name)
    task, evaluator = next(iter(one.tasks.items()))
    assert (metadata.note, metadata.task, metadata.get("evaluator_type")) == ("old", task, evaluator or None)
    for field, value in sources.items():
        expected = [str(path) for path in value] if isinstance(value, list) else value
        assert getattr(metadata, field) == (str(value) if isinstance(value, Path) else expected)
    with pytest.raises(
        InputError, match=f"dataset name '{new_name}': expected a new name, found one that is registered"
    ):
        register(format_name, new_name, {}, **sources)
    register(format_name, f"{new_name}_2", {"evaluator_type": "mine"}, list(one.tasks)[-1], **sources)
    metadata = MetadataCatalog.get(f"{new_name}_2")
    assert (metadata.task, metadata.evaluator_type) == (list(one.tasks)[-1], "mine")
    with pytest.raises(InputError, match=rf"dataset 'other': task: expected one of .*'{task}'.*, found 'poetry'"):
        register(format_name, "other", {}, "poetry", **sources)
    assert "other" not in DatasetCatalog


FIELDS = [
    (name, field)
    for name, one in FORMATS.items()
    for field in one.sources
    if field.endswith(("_file", "_files", "image_root")) and name != OTHER
]


@pytest.mark.parametrize(("format_name", "field"), FIELDS)
def test_a_missing_file_or_folder_is_named_with_the_variable(new_name, tmp_path, monkeypatch, format_name, field):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    register(format_name, new_name, {}, **sources_in(tmp_path, format_name))
    (tmp_path / field).rename(tmp_path / "elsewhere")
    message = (
        f"dataset '{new_name}': {field} {tmp_path / field} does not exist; .*DETECTRON2_DATASETS names .*'/data/sets'"
    )
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get(new_name)
