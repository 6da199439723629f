"""Measurements of speed, as commands whose results are kept."""
