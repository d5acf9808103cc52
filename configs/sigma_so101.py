"""Sigma around the tiny pi0.5 of this repository, on the embedded SO-101 episodes: minutes on two
CPU cores.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The demo's training run."""
    c = defaults.get_config()
    c.base = 'demo_run/base'
    c.shards = 'demo_run/shards'
    c.steps = 500
    c.sigma.action_width = 128  # narrow as the base is
    c.sigma.action_heads = 4
    c.sigma.heads = 4
    c.sigma.num_visual = 32
    c.sigma.state_hidden = 128
    c.sigma.trajectory_blocks = 2
    return c
