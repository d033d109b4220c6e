"""Backbones with the pyramid levels that the fusion tower reads."""
