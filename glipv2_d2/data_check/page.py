"""The page of a check of data: figures, findings, histograms, and photographs with their boxes; one file alone."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence

import numpy as np
from detectron2.structures import Boxes, Instances
from PIL import Image

from ..colored_text import phrase_color
from ..data.image_reading import read_image
from ..plurals import agreeing, counted
from ..visualizer import GroundingVisualizer
from .boxes import TINY_PIXELS
from .facts import DataFacts, ImageFacts
from .findings import Finding, percent, some

_MOST_IMAGES = 24
_MOST_BARS = 40
_MOST_CASES = 12
_THUMBNAIL = 520  # pixels of the longer side
_MOST_FULL = 8  # boxes with full labels in a photograph
_SPLIT_COLORS = {"train": "#2f6f9f", "val": "#e39a2d", "test": "#7a6aa8"}
# Upper ends of the bars of the histogram of sides, in pixels.
_SIDE_ENDS = (4, 8, 16, 32, 64, 128, 256, 512)

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5c6b7a; --line: #e1e6eb; --back: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 27px; margin: 0; letter-spacing: -.01em; } h2 { font-size: 18px; margin: 34px 0 12px; }
.verdict { color: var(--soft); margin: 4px 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
.tile, .panel, .finding { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 16px; } .tile b { display: block; font-size: 23px; } .tile span { color: var(--soft); }
.finding { padding: 11px 16px 11px 14px; margin-bottom: 8px; border-left: 5px solid #9aa7b3; }
.finding.stop { border-left-color: #c0392b; } .finding.warning { border-left-color: #e39a2d; }
.finding .tag { font-size: 11px; text-transform: uppercase; letter-spacing: .07em; color: var(--soft); }
.finding.stop .tag { color: #c0392b; } .finding.warning .tag { color: #a96807; }
.finding p { margin: 2px 0 0; } .finding .advice { color: var(--soft); } .finding .advice::before { content: "→ "; }
details { margin-top: 4px; color: var(--soft); font-size: 13px; } details li { overflow-wrap: anywhere; }
summary { cursor: pointer; } ul { margin: 6px 0 2px; padding-left: 20px; }
.charts { display: grid; align-items: start;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px; }
.panel { padding: 16px 18px; } .panel h3 { margin: 0 0 10px; font-size: 15px; } svg { width: 100%; height: auto; }
.key { color: var(--soft); font-size: 13px; } .key i { display: inline-block; width: 11px; height: 11px;
border-radius: 3px; margin: 0 5px 0 12px; }
.photos { columns: 3 330px; column-gap: 14px; }
figure { margin: 0 0 14px; break-inside: avoid; background: #fff; border: 1px solid var(--line); border-radius: 10px;
overflow: hidden; } figure img { width: 100%; display: block; }
figcaption { padding: 7px 11px; color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
"""


def page_html(facts: DataFacts, findings: Sequence[Finding]) -> str:
    """Return the page as a text of html; images and histograms are inside of it."""
    stops = sum(one.severity == "stop" for one in findings)
    warnings = sum(one.severity == "warning" for one in findings)
    verdict = (
        "This set cannot be trained on yet."
        if stops
        else f"This set can be trained on, with {counted(warnings, 'warning')}."
        if warnings
        else "This set can be trained on."
    )
    title = html.escape(f"Data check: {facts.name}")
    photos = "".join(_photo(image, facts) for image in choose_images(facts))
    body = [
        f"<h1>{title}</h1><p class='verdict'>{verdict}</p>",
        f"<div class='tiles'>{_tiles(facts)}</div>",
        f"<h2>Findings</h2>{''.join(map(_finding, findings)) or '<p>Nothing was found.</p>'}",
        f"<h2>Classes and sizes</h2><div class='charts'>{_class_panel(facts)}{_side_panel(facts)}</div>",
        f"<h2>Photographs</h2><div class='photos'>{photos}</div>" if photos else "",
    ]
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def choose_images(facts: DataFacts, number: int = _MOST_IMAGES) -> list[ImageFacts]:
    """Choose readable images for a page, the same each time: each shows the class that those before it show least.

    Images without boxes come last; copies are left out.
    """
    waiting = {image.pixels_digest: image for image in reversed(facts.images) if image.is_read and not image.error}
    ordered = sorted(waiting.values(), key=lambda image: hashlib.sha256(image.place.encode()).digest())
    ordered.sort(key=lambda image: not image.objects)
    shown = dict.fromkeys(facts.names, 0)
    chosen: list[ImageFacts] = []
    while ordered and len(chosen) < number:
        numbers = [min((shown[box.name] for box in image.objects), default=number) for image in ordered]
        chosen.append(ordered.pop(int(np.argmin(numbers))))
        for name in {box.name for box in chosen[-1].objects}:
            shown[name] += 1
    return chosen


def _tiles(facts: DataFacts) -> str:
    counts = {split: sum(image.split == split for image in facts.images) for split in facts.splits}
    figures = [(f"{agreeing(count, 'image', 'images')} in {split}", f"{count:,}") for split, count in counts.items()]
    boxes = sum(len(image.objects) for image in facts.images)
    figures += [(agreeing(boxes, "box", "boxes"), f"{boxes:,}")]
    figures += [(agreeing(len(facts.names), "class", "classes"), f"{len(facts.names):,}")]
    sides = facts.short_sides()
    if len(sides):
        figures.append((f"side of a medium box at input size {facts.input_size[0]}", f"{np.median(sides):.0f} px"))
    if facts.num_tokens:
        prompts = agreeing(len(facts.num_tokens), "prompt", f"{len(facts.num_tokens)} prompts")
        figures.append((f"tokens of the {prompts}", f"{sum(facts.num_tokens):,}"))
    return "".join(
        f"<div class='tile'><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in figures
    )


def _finding(one: Finding) -> str:
    advice = f"<p class='advice'>{html.escape(one.advice)}</p>" if one.advice else ""
    cases = "".join(f"<li>{html.escape(case)}</li>" for case in one.cases[:_MOST_CASES])
    rest = len(one.cases) - _MOST_CASES
    cases += f"<li>and {rest:,} more, in data_check.json</li>" if rest > 0 else ""
    listed = f"<details><summary>which</summary><ul>{cases}</ul></details>" if cases else ""
    return (
        f"<div class='finding {one.severity}'><span class='tag'>{one.severity}</span>"
        f"<p>{html.escape(one.text)}</p>{advice}{listed}</div>"
    )


def _class_panel(facts: DataFacts) -> str:
    """Return a bar for each class, its splits one after the other."""
    counts = {split: facts.boxes_of(split) for split in facts.splits}
    totals = {name: sum(count[name] for count in counts.values()) for name in facts.names}
    names = sorted(facts.names, key=lambda name: (-totals[name], name))
    most = max(totals.values(), default=0) or 1
    rows = []
    for row, name in enumerate(names[:_MOST_BARS]):
        left, top = 170.0, 24 * row
        rows.append(_text(162, top + 15, name if len(name) <= 22 else name[:21] + "…", "end"))
        for split, count in counts.items():
            width = 300 * count[name] / most
            rows.append(f"<rect x='{left:.1f}' y='{top + 3}' width='{width:.1f}' height='16' fill='{_color(split)}'/>")
            left += width
        rows.append(_text(left + 7, top + 15, f"{totals[name]:,}", "start"))
    more = len(names) - _MOST_BARS
    rest = f"<p class='key'>and {counted(more, 'class')} with fewer</p>" if more > 0 else ""
    height = 24 * min(len(names), _MOST_BARS) + 4
    return _panel("Boxes of each class", f"<svg viewBox='0 0 540 {height}'>{''.join(rows)}</svg>{_key(facts)}{rest}")


def _side_panel(facts: DataFacts) -> str:
    """Return a histogram of the shorter sides of boxes as the model sees them."""
    ends = np.array(_SIDE_ENDS, dtype=np.float64)
    counts = np.bincount(np.digitize(facts.short_sides(), ends), minlength=len(ends) + 1)
    most, total = max(1, counts.max()), max(1, counts.sum())
    labels = [f"under {ends[0]:.0f}", *(f"{low}–{high}" for low, high in zip(_SIDE_ENDS, _SIDE_ENDS[1:], strict=False))]
    labels.append(f"over {ends[-1]:.0f}")
    bars = []
    for row, (count, label) in enumerate(zip(counts.tolist(), labels, strict=True)):
        is_tiny = row < _SIDE_ENDS.index(TINY_PIXELS) + 1
        left, height = 8 + 59 * row, 170 * count / most
        color = "#c0392b" if is_tiny else "#4d8f6b"
        bars.append(
            f"<rect x='{left}' y='{190 - height:.1f}' width='50' height='{height:.1f}' rx='3' fill='{color}'/>"
            + _text(left + 25, 207, label, "middle")
            + (_text(left + 25, 184 - height, percent(count / total).replace("under ", "<"), "middle") if count else "")
        )
    note = f"Shorter side in pixels at input size {facts.input_size[0]}; under {TINY_PIXELS} (red) is hard to find."
    chart = f"<svg viewBox='0 0 540 214'>{''.join(bars)}</svg><p class='key'>{note}</p>"
    return _panel("Size of the boxes for the model", chart)


def _photo(image: ImageFacts, facts: DataFacts) -> str:
    """Return a photograph with its boxes."""
    # Of known size, an image may be larger.
    height, width = image.file_size
    pixels = read_image({"file_name": image.path, "height": height, "width": width}, "RGB", [])
    scale = _THUMBNAIL / max(pixels.shape[:2])
    small = Image.fromarray(pixels).resize(
        (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))), Image.Resampling.LANCZOS
    )
    rows = {name: row for row, name in enumerate(facts.names)}
    instances = Instances((small.height, small.width))
    instances.pred_boxes = Boxes(np.array([box.corners for box in image.objects]).reshape(-1, 4) * scale)
    instances.pred_classes = np.array([rows[box.name] for box in image.objects], dtype=np.int64)
    visualizer = GroundingVisualizer(np.asarray(small), 0, "thin" if len(image.objects) > _MOST_FULL else "auto")
    drawing = visualizer.draw_predictions(instances, facts.names)
    buffer = io.BytesIO()
    Image.fromarray(drawing).save(buffer, "JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    names = sorted({box.name for box in image.objects})
    caption = f"{image.place} · {len(image.objects)} × {some(names, 3)}" if names else f"{image.place} · no boxes"
    text = html.escape(caption)
    source = f"data:image/jpeg;base64,{encoded}"
    return f"<figure><img loading='lazy' alt='{text}' src='{source}'><figcaption>{text}</figcaption></figure>"


def _panel(title: str, content: str) -> str:
    return f"<div class='panel'><h3>{html.escape(title)}</h3>{content}</div>"


def _key(facts: DataFacts) -> str:
    parts = "".join(f"<i style='background:{_color(split)}'></i>{html.escape(split)}" for split in facts.splits)
    return f"<p class='key'>{parts}</p>"


def _color(split: str) -> str:
    if split in _SPLIT_COLORS:
        return _SPLIT_COLORS[split]
    return "#{:02x}{:02x}{:02x}".format(*phrase_color(len(split)))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='12' fill='#5c6b7a'>{html.escape(text)}</text>"
    )
