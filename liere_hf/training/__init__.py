"""Metrics and the training run."""
