"""What an evaluation asks of the trained Sigma that it measures."""

from typing import Any, Protocol

from sigma_jax.convert.load_base import Base
from sigma_jax.data.shards.directory import Shards
from sigma_jax.evaluation.replay import NumpyBatch
from sigma_jax.training.config import RunConfig
from sigma_jax.types import Ablation, Frozen, PyTree, SigmaOutput


class Predictor(Protocol):
    """A trained Sigma: `evaluation.trained_models.TrainedSigma`, or a test's stand-in with known
    errors.
    """

    config: RunConfig
    """All settings of its training."""

    shards: Shards
    """What it was trained on."""

    base: Base
    """The policy that it was trained around."""

    frozen: Frozen
    """The same policy's leaves as they lie on the device."""

    sequence_length: int
    """Windows that training carried its memory along."""

    gates: Ablation
    """Those it was trained with."""

    sigma_params: PyTree
    """Its heads, for CHECK A."""

    parameter_counts: dict[str, int]
    """Of each group of its leaves, and of the base."""

    provenance: dict[str, Any]
    """Step, seed and base of the checkpoint."""

    def predict(self, batch: NumpyBatch, ablation: Ablation) -> SigmaOutput:
        """Its actions and what it made them of, leaves [b g ...].

        Args:
          batch: windows, leaves [b g ...].
          ablation: gates that switch parts of it off.

        Returns:
          Actions in raw units, tau and what else went into them.
        """

    def flops(self, batch: NumpyBatch) -> int | None:
        """Operations of its forward pass for a window; None where nothing is known of them.

        Args:
          batch: windows, for their shapes.

        Returns:
          Floating-point operations of one window.
        """
