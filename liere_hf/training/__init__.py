"""Data sets, transforms, metrics and the training run."""
