"""Scaling laws: compute, fits, and what they say."""
