"""Scores of captions against references: BLEU, ROUGE-L and CIDEr in Python, METEOR and SPICE where Java is there."""

from .scores import CaptionScores, score_captions

__all__ = ["CaptionScores", "score_captions"]
