"""Masks that are encoded beside the model are those that are encoded in its way, and no image is held for long."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detection_cases import dataset_of, process, random_case, run_lengths
from detectron2.data import MetadataCatalog

from glipv2_d2.data.loading import LoadedDataset
from glipv2_d2.evaluation import mask_encoding
from glipv2_d2.evaluation.build import build_evaluator
from glipv2_d2.evaluation.mask_encoding import MaskEncoder, encode_masks

HEIGHT, WIDTH = 13, 21


def random_masks():
    """Masks of every density, and those that end where the image ends."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(40, HEIGHT, WIDTH, generator=draw) < torch.linspace(0, 1, 40)[:, None, None]
    edges = torch.zeros(5, HEIGHT, WIDTH, dtype=torch.bool)
    edges[1] = True
    edges[2, 0, 0] = edges[3, -1, -1] = edges[4, :, -1] = True
    return torch.cat((masks, edges))


def test_run_lengths_are_those_of_pycocotools_for_the_whole_mask():
    masks = random_masks()
    assert [counts.decode("ascii") for counts in encode_masks(masks)] == [run_lengths(one)["counts"] for one in masks]
    assert encode_masks(masks[:0]) == []


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_masks_may_change_after_they_were_handed_over(num_threads):
    encoder, masks = MaskEncoder(num_threads), random_masks()
    found = [np.full(len(masks), None, dtype=object) for _ in range(9)]
    expected = [encode_masks(masks.roll(shift, dims=2)) for shift in range(9)]
    for shift, counts in enumerate(found):
        moved = masks.roll(shift, dims=2)
        encoder.encode(moved, counts, shift)
        moved[:] = False
    encoder.finish()
    assert [counts.tolist() for counts in found] == expected


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_results_and_bytes_of_the_file_are_the_same_beside_the_model_and_in_its_way(
    tmp_path, tiny_cfg, kind, monkeypatch
):
    content, detections, ids = random_case(3)
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
    names, fill = [set()], mask_encoding._fill
    monkeypatch.setattr(
        mask_encoding, "_fill", lambda *values: (names[-1].add(threading.current_thread().name), fill(*values))
    )
    tiny_cfg.MODEL.MASK_ON = True
    files, results = [], []
    with dataset_of(content, tmp_path / "annotations.json") as name:
        MetadataCatalog.get(name).evaluator_type = kind
        for num_workers in (0, 2):
            tiny_cfg.DATALOADER.NUM_WORKERS = num_workers
            evaluator = build_evaluator(tiny_cfg, LoadedDataset(name, []), str(tmp_path / str(num_workers)))
            results.append(process(evaluator, detections, ids))
            files.append((tmp_path / str(num_workers) / evaluator.file_name).read_bytes())
            names.append(set())
    np.testing.assert_equal(*results)
    assert files[0] == files[1] and b'"counts"' in files[0]
    main = threading.main_thread().name
    assert names[0] == {main} and names[1] and main not in names[1]


@pytest.mark.parametrize("num_threads", [0, 1])
def test_an_image_whose_masks_cannot_be_encoded_is_named(num_threads, monkeypatch):
    def fail(_):
        raise MemoryError("no memory for the code")

    encoder = MaskEncoder(num_threads)
    encoder.encode(random_masks(), np.full(45, None, dtype=object), 7)
    encoder.finish()
    monkeypatch.setattr(mask_encoding, "mask_utils", SimpleNamespace(encode=fail))
    with pytest.raises(RuntimeError, match="image 'a.jpg': its masks could not be encoded: no memory for the code"):
        encoder.encode(random_masks(), np.full(45, None, dtype=object), "a.jpg")
        encoder.finish()


def test_no_more_than_two_images_for_each_thread_wait(monkeypatch):
    start = threading.Event()
    fill = mask_encoding._fill
    monkeypatch.setattr(mask_encoding, "_fill", lambda *values: (start.wait(60), fill(*values)))
    encoder = MaskEncoder(2)
    for number in range(4):
        encoder.encode(random_masks(), np.full(45, None, dtype=object), number)
    assert not start.is_set()
    threading.Timer(0.05, start.set).start()
    encoder.encode(random_masks(), np.full(45, None, dtype=object), 4)
    assert start.is_set()
    encoder.finish()
