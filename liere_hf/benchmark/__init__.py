"""Benchmarks of speed and memory, run by `liere-hf benchmark`."""
