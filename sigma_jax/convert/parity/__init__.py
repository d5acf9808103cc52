"""Parity fixtures and the proof against the numbers of a public implementation."""
