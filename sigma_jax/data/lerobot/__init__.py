"""LeRobot data sets v2.1 and v3.0, read and written without LeRobot."""

from sigma_jax.data.lerobot.dataset import open_dataset

__all__ = ['open_dataset']
