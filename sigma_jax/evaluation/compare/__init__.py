"""Trainings against each other: found, replayed on the same episodes, contrasted with intervals."""
