"""Two rows, two seeds: the order of an experiment without its work."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Sigma with and without tau."""
    return ConfigDict(
        {'seeds': (0, 1), 'at_once': 0, 'rows': (('sigma', {}), ('no_tau', {'tau': 0.0}))}
    )
