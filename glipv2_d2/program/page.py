"""The page of ``glipv2 serve``: find names or a sentence in a photograph, ask a question, describe it.

Gradio draws the page (extra ``[web]``). The model runs once for a photograph and a text; another threshold, and the
choice of a word, only draw anew.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio
import numpy as np
from detectron2.structures import Instances
from gradio.data_classes import FileData

from ..colored_text import phrase_color, split_words
from ..data.image_reading import UnreadableImageError, read_image
from ..engine.predictor import GLIPv2Predictor
from ..errors import InputError, memory_errors
from ..prompts.user_prompts import names_in
from ..visualizer import GroundingVisualizer

Result = TypeVar("Result")

_ALL_WORDS = "all"
_NAMES_HINT = "names, such as: dog, red car; or a sentence, such as: a man on a skateboard"
# How often gradio looks for old photographs and drawings, and how old they are when it removes them.
_KEPT_SECONDS = (3600, 24 * 3600)
_TABLE_HEAD = ["name", "score", "left", "top", "right", "bottom"]
# No font is loaded from another machine.
THEME = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


class Found(NamedTuple):
    """What a model found in a photograph.

    Attributes:
        image: (H, W, 3) uint8 in RGB order.
        instances: K detections on the CPU.
        phrases: P strings, which ``pred_classes`` are rows of.
        caption: The sentence that was looked for, or was written; None for a list of names.
        spans: Half-open character ranges of each phrase of a written caption; empty otherwise.
        words: Words of a written caption that have a box; empty otherwise.
    """

    image: np.ndarray
    instances: Instances
    phrases: list[str]
    caption: str | None = None
    spans: list[Any] = []
    words: list[dict[str, Any]] = []


class Answers:
    """What the handlers of the page do; errors are messages for the person who looks at it.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: GLIPv2Predictor) -> None:
        self._predictor = predictor

    def find(self, file: str | None, text: str, threshold: float) -> tuple[Any, ...]:
        """Find what a text names, and draw it.

        Args:
            file: Path of the photograph; None if there is none yet.
            text: Names or a sentence.
            threshold: Least score of what is drawn, in [0, 1].

        Returns:
            The detections, then those of ``draw``.
        """
        image = _read(file)
        output = self._predictor(_to_bgr(image), _not_blank(text, f"Write {_NAMES_HINT}."))
        found = Found(image, output["instances"].to("cpu"), output["phrases"], None if names_in(text) else text)
        return found, *draw(found, threshold)

    def answer(self, file: str | None, question: str) -> tuple[np.ndarray, dict[str, float]]:
        """Answer a question: a drawing with the question, its boxes and the answer, and the best answers by score."""
        image = _read(file)
        output = self._predictor.answer(_to_bgr(image), _not_blank(question, "Write a question."))
        drawing = GroundingVisualizer(image).draw_answer(
            output["instances"].to("cpu"), output["phrases"], question, output["answer"], output["score"]
        )
        return drawing, dict(output["answers"])

    def describe(self, file: str | None) -> tuple[Any, ...]:
        """Describe a photograph: what was found, the drawing, the caption in colours, and its words to choose from."""
        image = _read(file)
        output = self._predictor.caption(_to_bgr(image))
        words = [word for word in output["words"] if word["box"] is not None]
        found = Found(image, output["instances"], output["phrases"], output["caption"], output["phrase_spans"], words)
        choices = [_ALL_WORDS, *(f"{k + 1}. {word['word']}" for k, word in enumerate(words))]
        chooser = gradio.Radio(choices, value=_ALL_WORDS, visible=bool(words))
        return found, draw_caption(found, _ALL_WORDS), _in_colors(found), chooser


def draw(found: Found | None, threshold: float) -> tuple[np.ndarray | None, list[list[Any]], str]:
    """Draw detections with a score of at least ``threshold``: the drawing, a table and a line about both."""
    if found is None:
        return None, [], ""
    kept = found.instances[found.instances.scores >= threshold]
    kept = kept[kept.scores.argsort(descending=True, stable=True)]
    drawing = GroundingVisualizer(found.image).draw_predictions(kept, found.phrases, found.caption)
    boxes, scores = kept.pred_boxes.tensor.tolist(), kept.scores.tolist()
    rows = [
        [found.phrases[row], round(score, 3), *(round(side, 1) for side in box)]
        for row, score, box in zip(kept.pred_classes.tolist(), scores, boxes, strict=True)
    ]
    best = f" The best score is {found.instances.scores.max():.2f}." if len(found.instances) else ""
    said = f"{len(kept)} found with a score of at least {threshold:.2f}." if rows else f"Nothing found.{best}"
    return drawing, rows, said


def draw_caption(found: Found | None, choice: str) -> np.ndarray | None:
    """Draw a written caption with the boxes of its phrases, or with the box of one word, "NUMBER. WORD"."""
    if found is None:
        return None
    visualizer = GroundingVisualizer(found.image)
    if choice == _ALL_WORDS:
        return visualizer.draw_generated(found.instances, found.phrases, found.caption or "", found.spans)
    word = found.words[int(choice.split(".")[0]) - 1]
    alone = Instances(found.image.shape[:2])
    alone.pred_boxes = type(found.instances.pred_boxes)([word["box"]])
    alone.scores = found.instances.scores.new_tensor([word["score"]])
    alone.pred_classes = found.instances.pred_classes.new_tensor([0])
    return visualizer.draw_generated(alone, [word["word"]], found.caption or "", [[word["span"]]])


def build_page(predictor: GLIPv2Predictor, name: str) -> gradio.Blocks:
    """Build the page of a model: a tab for each thing that it can do.

    Args:
        predictor: The model.
        name: Its name, in the head of the page.
    """
    answers = Answers(predictor)
    model = predictor.cfg.MODEL
    with gradio.Blocks(title=f"glipv2_d2: {name}", analytics_enabled=False, delete_cache=_KEPT_SECONDS) as page:
        gradio.Markdown(f"# What is where?\nModel: **{name}**")
        with gradio.Row():
            with gradio.Column():
                photograph = _photograph_input()
                with gradio.Tab("Find"):
                    find = _find_inputs()
                if model.GLIPV2.VQA.ENABLED:
                    with gradio.Tab("Ask"):
                        question = gradio.Textbox(label="Question", info="such as: how many dogs are there?")
                        ask = gradio.Button("Answer", variant="primary")
                        best = gradio.Label(label="Answers", num_top_classes=5)
                if model.GLIPV2.CAPTIONING.ENABLED:
                    with gradio.Tab("Describe"):
                        describe = gradio.Button("Describe", variant="primary")
                        caption = gradio.HighlightedText(label="Caption", show_legend=False)
                        chooser = gradio.Radio([], label="Box of a word", visible=False)
            with gradio.Column():
                drawing = gradio.Image(
                    label="Result", interactive=False, format="png", buttons=["download", "fullscreen"]
                )
                said = gradio.Markdown()
                table = gradio.Dataframe(headers=_TABLE_HEAD, label="Detections", interactive=False)
        found = gradio.State()
        shown = [drawing, table, said]
        for event in (find.button.click, find.text.submit):
            event(in_words(answers.find), [photograph, find.text, find.threshold], [found, *shown])
        find.threshold.change(draw, [found, find.threshold], shown, trigger_mode="always_last")
        if model.GLIPV2.VQA.ENABLED:
            for event in (ask.click, question.submit):
                event(in_words(answers.answer), [photograph, question], [drawing, best])
        if model.GLIPV2.CAPTIONING.ENABLED:
            written = gradio.State()
            describe.click(in_words(answers.describe), photograph, [written, drawing, caption, chooser])
            chooser.select(draw_caption, [written, chooser], drawing)
        photograph.change(_cleared, None, [found, *shown])
    return page


def _photograph_input() -> gradio.Image:
    """Make the input of a photograph; its file reaches the handler as it is, and our reader says what is wrong with it.

    gradio's own reader would fail without a word. It is replaced in the object: a class of our own would make gradio
    write a file beside this one.
    """
    photograph = gradio.Image(label="Photograph", sources=["upload", "clipboard", "webcam"])
    photograph.preprocess = _path_of  # type: ignore[method-assign, assignment]  # see above
    return photograph


def _path_of(upload: FileData | None) -> str | None:
    return None if upload is None else upload.path


class _FindInputs(NamedTuple):
    text: gradio.Textbox
    threshold: gradio.Slider
    button: gradio.Button


def _find_inputs() -> _FindInputs:
    text = gradio.Textbox(label="What to find", info=_NAMES_HINT)
    threshold = gradio.Slider(0, 1, value=0.3, step=0.01, label="Least score")
    return _FindInputs(text, threshold, gradio.Button("Find", variant="primary"))


def _cleared() -> tuple[Any, ...]:
    """Return the state and the results of a photograph in which nothing was looked for yet."""
    return None, *draw(None, 0.0)


def in_words(handler: Callable[..., Result]) -> Callable[..., Result]:
    """Show what is wrong with an input as a message on the page, which takes it for HTML."""

    @functools.wraps(handler)
    def handle(*inputs: Any) -> Result:
        try:
            with memory_errors():
                return handler(*inputs)
        except InputError as error:
            message = html.escape(str(error), quote=False)
        except MemoryError:
            message = "There is not enough memory; try a smaller photograph or fewer names."
        raise gradio.Error(message, duration=None, print_exception=False)

    return handle


def _read(file: str | None) -> np.ndarray:
    """Read the photograph, (H, W, 3) uint8 in RGB order.

    Raises:
        InputError: There is none, or its file cannot be read.
    """
    if file is None:
        raise InputError("Choose a photograph first.")
    try:
        return read_image({"file_name": file}, "RGB", [])
    except UnreadableImageError as error:
        # The folder is one of this machine.
        raise InputError(str(error).removeprefix(f"{Path(file).parent}/")) from error


def _to_bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, ::-1])


def _not_blank(text: str, hint: str) -> str:
    if not text.strip():
        raise InputError(hint)
    return text


def _in_colors(found: Found) -> gradio.HighlightedText:
    """Return the words of a caption, those of a phrase in the colour of its box."""
    boxed = set(found.instances.pred_classes.tolist())
    spans = [spans if row in boxed else () for row, spans in enumerate(found.spans)]
    words = split_words(found.caption or "", spans)
    labels = {row: f"{found.phrases[row]}" for row in boxed}
    colors = {labels[row]: "#{:02x}{:02x}{:02x}".format(*phrase_color(row)) for row in boxed}
    return gradio.HighlightedText(
        [(word, None if row is None else labels[row]) for word, row in words], color_map=colors
    )
