"""Training and prediction: the trainer, its step and hooks, and the predictor."""
