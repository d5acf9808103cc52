"""The objectives by the name that a config gives them, and what each asks of a run."""

from typing import Any, ClassVar, Protocol

from sigma_jax.errors import UserError
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import SigmaObjective


class Kind(Protocol):
    """What is known of an objective before it is built.

    Attributes:
      groups: the sets of trainable groups that it can learn.
      needs_base_actions: whether it reads the frozen policy's own actions, stored with the shards.
      trains_policy: whether the policy itself learns; otherwise heads around it do.
      weighs_terms: whether its loss is a sum of weighted terms, whose fractions of the gradient
        norm can be measured.
      passes: how often a window passes the language model.
    """

    groups: ClassVar[tuple[frozenset[str], ...]]
    needs_base_actions: ClassVar[bool]
    trains_policy: ClassVar[bool]
    weighs_terms: ClassVar[bool]
    passes: ClassVar[int]

    @staticmethod
    def horizon(model: Any, sigma: Any) -> int:
        """Actions of a window that the objective reads.

        Args:
          model: the policy's sizes.
          sigma: Sigma's sizes.

        Returns:
          The number of steps.
        """

    @classmethod
    def build(cls, model: Any, sigma: Any, loss: Any, curriculum: Any, rtc: Any) -> Any:
        """The objective.

        Args:
          model: the policy's sizes.
          sigma: Sigma's sizes.
          loss: constants of the loss.
          curriculum: constants of the curriculum.
          rtc: how many actions at a chunk's start are given.

        Returns:
          A callable as `training.step.Objective`.
        """


KINDS: dict[str, Any] = {'sigma': SigmaObjective, 'flow_matching': FlowMatching}


def find(name: str) -> Any:
    """The objective of a name.

    Args:
      name: 'sigma' or 'flow_matching'.

    Returns:
      Its class, a `Kind`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in KINDS:
        names = ' or '.join(map(repr, KINDS))
        raise UserError(f'config.objective: expected {names}, got {name!r}; choose one')
    return KINDS[name]
