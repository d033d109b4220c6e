"""The mapper of a training run: each dataset's samples go to the mapper of its kind of data."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import InputError
from ...prompts.tokenizer import PromptTokenizer
from .base import TASKS, PromptDatasetMapper
from .captioning import CaptioningDatasetMapper
from .detection import DetectionDatasetMapper
from .grounding import GroundingDatasetMapper
from .pseudo_grounding import PseudoGroundingDatasetMapper
from .vqa import VQADatasetMapper

# Of the kinds of data whose text is a sentence.
SENTENCE_MAPPERS: dict[str, type[PromptDatasetMapper]] = {
    "grounding": GroundingDatasetMapper,
    "pseudo_grounding": PseudoGroundingDatasetMapper,
    "vqa": VQADatasetMapper,
    "captioning": CaptioningDatasetMapper,
}


class TrainingMapper:
    """Make a model input from a dataset dict of any of the training datasets; it can be pickled."""

    def __init__(self, mapper_of_dataset: Mapping[str, PromptDatasetMapper]):
        """
        Args:
            mapper_of_dataset: For each dataset the mapper of its samples.
        """
        self.mapper_of_dataset = dict(mapper_of_dataset)

    def __call__(self, dataset_dict: dict) -> dict:
        """Make a model input; see ``PromptDatasetMapper``.

        Raises:
            InputError: The ``dataset_name`` in the dict is none of the training datasets.
            UnreadableImageError: The image cannot be read.
        """
        mapper = self.mapper_of_dataset.get(dataset_dict.get("dataset_name"))
        if mapper is None:
            raise InputError(
                f"{dataset_dict.get('file_name')}: dataset_name is {dataset_dict.get('dataset_name')!r}, "
                f"expected one of {list(self.mapper_of_dataset)}"
            )
        return mapper(dataset_dict)


def dataset_task(name: str) -> str:
    """Return the kind of data of a dataset: the ``task`` in its metadata, "detection" if that names none.

    Raises:
        InputError: No dataset of this name is registered, or its task is not one of ``TASKS``.
    """
    if name not in MetadataCatalog.list():
        raise InputError(f"dataset {name!r} is not registered")
    task = MetadataCatalog.get(name).get("task", "detection")
    if task not in TASKS:
        raise InputError(f"dataset {name!r}: task in its metadata is {task!r}, expected one of {list(TASKS)}")
    return task


def build_train_mapper(cfg: CfgNode) -> TrainingMapper:
    """Build a mapper for the samples of all DATASETS.TRAIN.

    There is one mapper for each kind of data, and one tokenizer for all. All detection datasets share their category
    ids: equal names have equal ids.

    Raises:
        InputError: A dataset is not registered, has an unknown task, or a key of the config an unknown value.
        FileNotFoundError: There are questions, but no list of answers.
    """
    tokenizer = PromptTokenizer.from_config(cfg)
    tasks = {name: dataset_task(name) for name in cfg.DATASETS.TRAIN}
    mappers: dict[str, PromptDatasetMapper] = {}
    if "detection" in tasks.values():
        names = [name for name, task in tasks.items() if task == "detection"]
        mappers["detection"] = DetectionDatasetMapper(cfg, dataset_names=names, tokenizer=tokenizer)
    for task, mapper_class in SENTENCE_MAPPERS.items():
        if task in tasks.values():
            mappers[task] = mapper_class(cfg, tokenizer=tokenizer)
    return TrainingMapper({name: mappers[task] for name, task in tasks.items()})
