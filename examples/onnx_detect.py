"""Detect names in photographs with a model that "glipv2 export --output mine.onnx" wrote: no torch, no glipv2_d2.

Needs numpy, onnxruntime and tokenizers, and Pillow to read images:

    python examples/onnx_detect.py mine.onnx photo.jpg other.jpg --names "raccoon,dog" --threshold 0.4
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

LAST_PIXEL = np.array([0, 0, 1, 1], np.float32)


class Detector:
    """The graphs of an export, and the prompts of some names, which are encoded once.

    Args:
        path: The detector, FILE.onnx; the files that were written with it lie beside it.
        names: What to find; none: the names that it was exported with.
        threads: Threads of onnxruntime, 0 for all cores.
    """

    def __init__(self, path, names=(), threads=0):
        path = Path(path)
        self.about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.names = list(names) or self.about["names"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options)
        reader = onnxruntime.InferenceSession(path.with_name(self.about["text_encoder"]), options)
        tokenizer = Tokenizer.from_file(str(path.with_name(self.about["tokenizer"])))
        self.prompts = []
        for first, ids, token_map in prompts_of(self.names, tokenizer, self.about):
            (text,) = reader.run(None, {"input_ids": np.array([ids], np.int64)})
            self.prompts.append((first, {"text": text, "phrase_token_map": token_map}))

    def __call__(self, image):
        """Detect in a PIL image: boxes (K, 4) left, top, right, bottom in pixels, scores (K,), rows of names (K,)."""
        image = ImageOps.exif_transpose(image).convert("RGB")
        canvas, size = prepare(image, self.about)
        found = []
        for first, prompt in self.prompts:
            inputs = {"image": canvas, "image_size": np.array(size, np.int64), **prompt}
            boxes, scores, phrases = decode(*self.session.run(None, inputs), self.about)
            found.append((boxes, scores, phrases + first))
        boxes, scores, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        best = best_of(scores, self.about["detections"]["of_an_image"])
        boxes, scale = boxes[best], np.array([image.width / size[1], image.height / size[0]] * 2, np.float32)
        # A box has its last pixel inside, and pixels are what is scaled.
        boxes = ((boxes - LAST_PIXEL) * scale + LAST_PIXEL).clip(0, [image.width, image.height] * 2)
        return boxes, scores[best], rows[best]


def prompts_of(names, tokenizer, about):
    """Yield prompts that hold all names: the row of the first name, token ids, and the tokens (P, T) of each name."""
    separator, texts = about["separator"], [clean(name) for name in names]
    room = about["max_tokens"] - tokenizer.num_special_tokens_to_add(False)

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    parts, used = [[0]], 0
    for row, text in enumerate(texts):
        if not 0 < count(text) <= room:
            raise SystemExit(f"names: expected names of 1 to {room} tokens, found {names[row]!r}")
        if row and (used + count(text) > room or len(parts[-1]) == about["names_of_a_prompt"]):
            parts.append([row])
            used = 0
        elif row:
            parts[-1].append(row)
        used += count(text + separator)
    for rows in parts:
        encoding = tokenizer.encode(separator.join(texts[row] for row in rows))
        token_map, begin = np.zeros((len(rows), len(encoding.ids)), bool), 0
        for marked, row in zip(token_map, rows, strict=True):
            tokens = [encoding.char_to_token(place) for place in range(begin, begin + len(texts[row]))]
            marked[[token for token in tokens if token is not None]] = True
            begin += len(texts[row]) + len(separator)
        yield rows[0], encoding.ids, token_map


def clean(name):
    """Turn a name into words, as the model has seen them: without parentheses and underscores."""
    begin, end = name.find("("), name.rfind(")")
    if 0 <= begin < end:
        name = name[:begin] + name[end + 1 :]
    return name.replace("_", " ").replace("  ", " ")


def prepare(image, about):
    """Resize an image and lay it into the upper left of a canvas (3, H, W); return the canvas and the image's size."""
    shortest, longest = about["resize"]["shortest"], about["resize"]["longest"]
    short, long = sorted(image.size)
    if shortest and long / short * shortest > longest:
        shortest = max(round(longest * short / long), 1)
    if shortest and shortest != short:
        sides = shortest, int(shortest * long / short)
        image = image.resize(sides if image.width < image.height else sides[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    if about["channels"] == "BGR":
        pixels = pixels[::-1]
    height, width = pixels.shape[1:]
    canvas = np.zeros((3, *(-(-side // about["multiple_of"]) * about["multiple_of"] for side in (height, width))), "f4")
    canvas[:, :height, :width] = pixels
    return canvas, (height, width)


def decode(boxes, scores, phrases, about):
    """Choose among the candidates of a prompt: those that overlap no better one of their name, best first."""
    kept = []
    for phrase in np.unique(phrases[scores > 0]):
        (rows,) = np.nonzero((phrases == phrase) & (scores > 0))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        while len(rows):
            kept.append(rows[0])
            overlaps = overlap(boxes[rows[0]].astype("f8"), boxes[rows[1:]].astype("f8"))
            rows = rows[1:][overlaps <= about["nms_threshold"]]
    kept = np.array(kept, np.int64)
    kept = kept[best_of(scores[kept], about["detections"]["of_a_prompt"])]
    return boxes[kept], scores[kept], phrases[kept]


def overlap(box, others):
    """Return the intersection over union of a box (4,) and others (K, 4), 0 of two boxes without an area."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = shared.clip(0).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = area + areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def best_of(scores, limit):
    """Return the rows of the ``limit`` highest scores, 0 for all, and of those that tie with the last of them."""
    order = np.argsort(-scores, kind="stable")
    return order if not 0 < limit < len(order) else order[scores[order] >= scores[order[limit - 1]]]


def main():
    """Print what is found in each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the detector, FILE.onnx")
    parser.add_argument("images", nargs="+", help="photographs")
    parser.add_argument("--names", default="", help="names to find, with commas; default: those of the export")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score that is printed")
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 for all cores")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.names.split(",") if name.strip()]
    detector = Detector(arguments.model, names, arguments.threads)
    if not detector.names:
        raise SystemExit("--names: expected names to find, the export has none of its own")
    for path in arguments.images:
        print(path)
        for box, score, row in zip(*detector(Image.open(path)), strict=True):
            if score >= arguments.threshold:
                print(f"  {detector.names[row]} {score:.2f} {[round(float(edge)) for edge in box]}")


if __name__ == "__main__":
    main()
