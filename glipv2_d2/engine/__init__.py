"""Training and prediction: the trainer, its step and hooks, and the predictor. All of them find what is registered."""

from .. import registrations  # noqa: F401
