"""The loss functions of the detector, one subject per file."""
