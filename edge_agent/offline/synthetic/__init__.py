"""Rendered people and streets with known ground truth."""
