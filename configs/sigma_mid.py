"""Sigma around the pi0.5 of configs/pi05_mid.py: the larger run of experiments/, on one large
GPU.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The demo's run with heads as much wider as the base is."""
    c = defaults.get_config()
    c.base = 'runs/telepathy/policy/policy'
    c.shards = 'runs/telepathy/shards'
    c.steps = 1000
    # at its end: 60 trainings are 6 GB a checkpoint, and a few minutes of work
    c.checkpoint.every = 1000
    c.model.dtype = 'bfloat16'
    c.sigma.action_width = 256
    c.sigma.action_heads = 8
    c.sigma.heads = 8
    c.sigma.trajectory_blocks = 2
    c.sigma.state_hidden = 256
    c.optimizer.sigma_rate = 6e-4  # peak; the base is 2.7 times as wide as the tiny one
    return c
