"""Rows that ask what tau is worth where the paper's full weights drive it:
--config.loss.alignment_scale=1.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Sigma, without tau, and with one tau for every input; five seeds."""
    rows = {'sigma': {}, 'no_tau': {'tau': 0.0}, 'tau_const': {'tau_const': 1.0}}
    return ConfigDict({'seeds': (0, 1, 2, 3, 4), 'at_once': 0, 'rows': tuple(rows.items())})
