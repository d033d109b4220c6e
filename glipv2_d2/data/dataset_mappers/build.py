"""The table of the kinds of data: for each of them the mapper that makes its samples."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...errors import InputError
from ...prompts.tokenizer import PromptTokenizer
from .base import PromptDatasetMapper
from .captioning import CaptioningDatasetMapper
from .detection import DetectionDatasetMapper
from .grounding import GroundingDatasetMapper
from .pseudo_grounding import PseudoGroundingDatasetMapper
from .vqa import VQADatasetMapper

# By the task in the metadata of a dataset. The order is part of the order of training samples, see ``TrainingSets``.
MAPPERS: dict[str, type[PromptDatasetMapper]] = {
    mapper.task: mapper
    for mapper in (
        DetectionDatasetMapper,
        GroundingDatasetMapper,
        PseudoGroundingDatasetMapper,
        VQADatasetMapper,
        CaptioningDatasetMapper,
    )
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
            ValueError: The ``dataset_name`` in the dict is not one of the training datasets.
            UnreadableImageError: The image cannot be read.
        """
        name = dataset_dict.get("dataset_name", "")
        if name not in self.mapper_of_dataset:
            raise ValueError(
                f"{dataset_dict.get('file_name')}: dataset_name: expected one of {list(self.mapper_of_dataset)}, "
                f"found {name!r}"
            )
        return self.mapper_of_dataset[name](dataset_dict)


def mapper_of(name: str) -> type[PromptDatasetMapper]:
    """Return the mapper of a dataset, by the ``task`` in its metadata; of detection data if that names none.

    Raises:
        InputError: No dataset of this name is registered, or the task is not one of ``MAPPERS``.
    """
    if name not in MetadataCatalog.list():
        raise InputError(f"dataset {name!r} is not registered")
    task = MetadataCatalog.get(name).get("task", DetectionDatasetMapper.task)
    if task not in MAPPERS:
        raise InputError(f"dataset {name!r}: task in its metadata: expected one of {list(MAPPERS)}, found {task!r}")
    return MAPPERS[task]


def build_train_mapper(cfg: CfgNode) -> TrainingMapper:
    """Build a mapper for the samples of all DATASETS.TRAIN.

    There is one mapper for each kind of data, and one tokenizer for all. All detection datasets share their category
    ids: equal names have equal ids.

    Raises:
        InputError: A dataset is not registered, has an unknown task, or a key of the config an unknown value.
        FileNotFoundError: There are questions, but no list of answers.
    """
    tokenizer = PromptTokenizer.from_config(cfg)
    tasks = {name: mapper_of(name).task for name in cfg.DATASETS.TRAIN}
    mappers = {}
    for task, mapper in MAPPERS.items():
        names = [name for name in tasks if tasks[name] == task]
        if names:
            mappers[task] = mapper(**mapper.from_config(cfg, tokenizer=tokenizer, dataset_names=names))
    return TrainingMapper({name: mappers[task] for name, task in tasks.items()})
