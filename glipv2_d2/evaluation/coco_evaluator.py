"""AP of COCO, on the annotations that the loader uses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data.datasets.coco import Truth, load_detection_truth
from .ap_engine import COCO_LIMIT, average_precisions, mean_precision, precisions
from .ap_evaluator import APEvaluator


class COCOInstanceEvaluator(APEvaluator):
    """AP of boxes and masks on COCO, of the best 100 detections of an image and category, or another limit.

    Results are "bbox" and "segm", each with AP, AP50, AP75, APs, APm, APl and, of several categories, "AP-name" of
    each. A metric is 0 if nothing was found, even without any detection, and NaN if there is nothing to find.
    Detections are written to ``coco_instances_results.json``.

    Args:
        dataset_name: Registered dataset.
        tasks: "bbox", "segm" or both; ``measurable_tasks`` may leave "segm" out.
        output_folder: Folder that detections are written to.
        truth: What the detections are compared with; unusable masks of its annotations are changed. None: the
            ``json_file`` of the metadata is read, in COCO's format; without one the dataset dicts are converted.
        engine: "auto" or "reference", as ``precisions`` takes it.
        mask_threads: Threads that encode masks while the model runs; 0: none.
        limit: As ``precisions`` takes it.

    Raises:
        AnnotationError: The file cannot be used.
    """

    file_name = "coco_instances_results.json"
    # As detectron2 converts dataset dicts.
    first_category_id = 0

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        output_folder: str | None = None,
        truth: Truth | None = None,
        engine: str = "auto",
        mask_threads: int = 0,
        limit: int = COCO_LIMIT,
    ) -> None:
        super().__init__(
            dataset_name,
            tasks,
            distributed=True,
            output_folder=output_folder,
            engine=engine,
            mask_threads=mask_threads,
        )
        self._limit = limit
        metadata = MetadataCatalog.get(dataset_name)
        if not self._judges:
            return
        if truth is None and metadata.get("json_file") is None:
            truth = convert_to_coco_dict(dataset_name)
        elif truth is None:
            json_file = PathManager.get_local_path(metadata.json_file)
            truth = load_detection_truth(json_file, metadata.get("image_root"))
        self._compare_with(truth)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Measure the detections; empty on all processes but the first, and for a dataset without annotations."""
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        rows = self._gather()
        if rows is None:
            return results
        names = MetadataCatalog.get(self._name).thing_classes
        class_of = {category_id: row for row, category_id in enumerate(self._category_ids.tolist())}
        for task in self._tasks:
            precision = precisions(self._truth, rows, task, engine=self._engine, limit=self._limit)
            results[task] = average_precisions(precision)
            self._logger.info("COCO, %s:\n%s", task, create_small_table(results[task]))
            if len(names) > 1:
                # Rows of categories are in the order of their ids.
                order = sorted(category["id"] for category in self._truth["categories"])
                of_classes = {
                    names[class_of[category_id]]: mean_precision(precision[:, :, row, 0])
                    for row, category_id in enumerate(order)
                    if category_id in class_of
                }
                self._logger.info("COCO, %s, AP of each class:\n%s", task, _table_of_classes(of_classes))
                results[task].update({f"AP-{name}": value for name, value in of_classes.items()})
        return results


def _table_of_classes(values: dict[str, float]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{name:{width}}  {value:7.3f}" for name, value in values.items())
