"""Captions and questions for the tests of their evaluators: a decoder of words, and results of a model."""

import torch
from detectron2.structures import BoxMode

from glipv2_d2.prompts.decoding import DecodedText

# Of these, 0 is a special token and "##s" continues a word.
WORDS = "[CLS] a an the dog dogs car sports and on street , man red ##s another".split()


def decode(ids):
    """The words of ids with a space between them."""
    text, spans = "", []
    for row in ids:
        if row == 0:
            spans.append(None)
            continue
        continues = WORDS[row].startswith("##")
        if text and not continues and WORDS[row] != ",":
            text += " "
        begin = len(text)
        text += WORDS[row].removeprefix("##")
        spans.append((begin, len(text)))
    return DecodedText(text, spans)


def ids_of(caption):
    """Ids of words, with the special token before and after them."""
    return torch.tensor([0, *map(WORDS.index, caption.split()), 0])


def caption_output(caption, token_boxes=None, score=-0.5):
    """A model output; ``token_boxes`` maps a word to its boxes with their scores, other words have box (0, 0, 1, 1)."""
    ids = ids_of(caption)
    output = {"caption_ids": ids, "caption_score": score}
    if token_boxes is not None:
        most = max([1, *map(len, token_boxes.values())])
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(ids), most, 1)
        scores = torch.zeros(len(ids), most)
        for row, word in enumerate(["[CLS]", *caption.split(), "[CLS]"]):
            for column, (box, box_score) in enumerate(token_boxes.get(word, ())):
                boxes[row, column], scores[row, column] = torch.tensor(box, dtype=torch.float32), box_score
        output.update(token_boxes=boxes, token_scores=scores)
    return output


def scene(image_id, captions, objects=()):
    """A dataset dict; ``objects`` are pairs of a category id or words of the caption, and an XYXY box."""
    item = {"image_id": image_id, "height": 100, "width": 100, "annotations": []}
    item.update({"caption": captions} if isinstance(captions, str) else {"captions": captions})
    for what, box in objects:
        left, top, right, bottom = box
        annotation = {"bbox": [left, top, right - left, bottom - top], "bbox_mode": BoxMode.XYWH_ABS}
        if isinstance(what, int):
            annotation["category_id"] = what
        else:
            begin = captions.index(what)
            annotation.update(category_id=0, tokens_positive=((begin, begin + len(what)),))
        item["annotations"].append(annotation)
    return item


def process(evaluator, outputs):
    """Hand outputs, pairs of an image id and an output, to an evaluator."""
    evaluator.reset()
    for image_id, output in outputs:
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()
