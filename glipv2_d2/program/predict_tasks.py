"""The tasks of ``glipv2 predict``: what each asks the model, draws and records of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from ..engine.detections import Detections, list_detections, list_masks, rounded_box
from ..engine.predictor import GLIPv2Predictor
from ..errors import memory_errors
from ..heat_maps import draw_phrase_maps
from ..visualizer import GroundingVisualizer

# A caption, names, or None for those of the config.
Prompt: TypeAlias = str | list[str] | None
Output = dict[str, Any]


class Detector:
    """Detect in one image after the other, and draw.

    Args:
        predictor: The model.
        prompt: What to find.
        threshold: Lowest score kept.
        max_boxes: Most detections kept of an image; None: all.
        batch_size: Images in one pass.
        style: See ``GroundingVisualizer``.

    Attributes:
        best_scores: The best score of each image so far, also where it was not kept; 0 without a detection.
    """

    def __init__(
        self,
        predictor: GLIPv2Predictor,
        prompt: Prompt = None,
        *,
        threshold: float,
        max_boxes: int | None = None,
        batch_size: int = 1,
        style: str = "auto",
    ) -> None:
        self.predictor, self.prompt, self.threshold, self.max_boxes = predictor, prompt, threshold, max_boxes
        self.batch_size, self.style = batch_size, style
        self.best_scores: list[float] = []

    def outputs(self, images: Iterable[np.ndarray]) -> Iterator[Output]:
        """Yield the output for each image in BGR order; one with ``error`` has nothing else."""
        found = self.predictor.stream(images, self.prompt, batch_size=self.batch_size)
        return map(self._kept, found)

    def draw(self, image: np.ndarray, output: Output) -> np.ndarray:
        """Draw an output on its image in BGR order, in RGB order."""
        caption = self.prompt if isinstance(self.prompt, str) else None
        return self._visualizer(image).draw_predictions(output["instances"], output["phrases"], caption)

    def draw_similarity(self, image: np.ndarray) -> np.ndarray:
        """Draw where each phrase fits an image in BGR order, in RGB order; the model runs once more."""
        found = self.predictor.phrase_maps(image, self.prompt)
        return draw_phrase_maps(image[:, :, ::-1], found.pop("phrases"), found)

    def record(self, output: Output) -> dict[str, Any]:
        """Return an output in plain types, for a JSON file."""
        return {"detections": list_detections(output["instances"], output["phrases"])}

    def _kept(self, output: Output) -> Detections:
        """Return an output, on the CPU, with the detections that the command line keeps."""
        self.best_scores.append(max(output["instances"].scores.tolist(), default=0.0))
        kept = Detections(output).above(self.threshold)
        kept["instances"] = kept["instances"].to("cpu")
        return kept if self.max_boxes is None else kept.best(self.max_boxes)

    def _visualizer(self, image: np.ndarray) -> GroundingVisualizer:
        return GroundingVisualizer(image[:, :, ::-1], style=self.style)

    def _one_by_one(self, images: Iterable[np.ndarray], ask: Callable[[np.ndarray], Output]) -> Iterator[Output]:
        for image in images:
            try:
                with memory_errors():
                    output = ask(image)
            except MemoryError:
                output = {"error": "out of memory"}
            yield output


class Referrer(Detector):
    """Segment a referring phrase, the prompt, in one image after the other, and draw."""

    def outputs(self, images: Iterable[np.ndarray]) -> Iterator[Output]:
        """Yield the output for each image in BGR order."""
        return self._one_by_one(images, lambda image: self.predictor.refer(image, str(self.prompt)))

    def draw(self, image: np.ndarray, output: Output) -> np.ndarray:
        """Draw an output on its image in BGR order, in RGB order."""
        return self._visualizer(image).draw_referred(output["mask"], str(self.prompt))

    def record(self, output: Output) -> dict[str, Any]:
        """Return an output in plain types, for a JSON file."""
        return {"segmentation": list_masks(torch.from_numpy(output["mask"])[None])[0]}


class Answerer(Detector):
    """Answer one question, the prompt, about one image after the other, and draw."""

    def outputs(self, images: Iterable[np.ndarray]) -> Iterator[Output]:
        """Yield the output for each image in BGR order."""
        return self._one_by_one(images, lambda image: self._kept(self.predictor.answer(image, str(self.prompt))))

    def draw(self, image: np.ndarray, output: Output) -> np.ndarray:
        """Draw an output on its image in BGR order, in RGB order."""
        asked = (str(self.prompt), output["answer"], output["score"])
        return self._visualizer(image).draw_answer(output["instances"], output["phrases"], *asked)

    def record(self, output: Output) -> dict[str, Any]:
        """Return an output in plain types, for a JSON file."""
        record = {"answer": output["answer"], "score": round(output["score"], 4)}
        record["answers"] = [[other, round(its_score, 4)] for other, its_score in output["answers"]]
        return {**record, **super().record(output)}


class Captioner(Detector):
    """Write captions of one image after the other, and draw."""

    def outputs(self, images: Iterable[np.ndarray]) -> Iterator[Output]:
        """Yield the output for each image in BGR order."""
        return self._one_by_one(images, lambda image: self._kept(self.predictor.caption(image)))

    def draw(self, image: np.ndarray, output: Output) -> np.ndarray:
        """Draw an output on its image in BGR order, in RGB order."""
        asked = (output["phrases"], output["caption"], output["phrase_spans"])
        return self._visualizer(image).draw_generated(output["instances"], *asked)

    def record(self, output: Output) -> dict[str, Any]:
        """Return the best box of every word, and the boxes of phrases from the threshold on."""
        record = {"caption": output["caption"], "score": round(output["score"], 4)}
        record["words"] = [{**word, **rounded_box(word["score"], word["box"])} for word in output["words"]]
        return {**record, **super().record(output)}


_TASKS: dict[str, type[Detector]] = {"detect": Detector, "refer": Referrer, "vqa": Answerer, "caption": Captioner}


def make_task(name: str, predictor: GLIPv2Predictor, prompt: Prompt, **options: Any) -> Detector:
    """Return the task of this name; for the options see ``Detector``."""
    return _TASKS[name](predictor, prompt, **options)
