"""Tests of sigma_jax.sim."""
