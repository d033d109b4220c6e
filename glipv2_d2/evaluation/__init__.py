"""Evaluators, chosen by the ``evaluator_type`` of a dataset."""

from .build import build_evaluator

__all__ = ["build_evaluator"]
