"""Checkpoint formats in and out: one table of names per format."""
