"""sigma_jax: fine-tuning pi0.5 with the three workspaces of the Sigma paper, in JAX and Flax."""

__version__ = '0.1.0'
