"""The objectives by the name that a config gives them, and what each asks of a run."""

from typing import Any, ClassVar, Protocol

from sigma_jax.errors import UserError
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import SigmaObjective


class Kind(Protocol):
    """What is known of an objective before it is built.

    groups: the sets of trainable groups that it can learn.
    needs_base_actions: it reads the frozen policy's own actions, which lie beside the shards.
    trains_policy: the policy itself learns; else heads around it.
    weighs_terms: its loss is a sum of weighted terms, whose shares can be measured.
    passes: how often a window passes the language model.
    horizon: actions of a window that it reads, from the model's sizes and Sigma's.
    build: the objective of a model, Sigma's sizes, and the constants of its loss and curriculum.
    """

    groups: ClassVar[tuple[frozenset[str], ...]]
    needs_base_actions: ClassVar[bool]
    trains_policy: ClassVar[bool]
    weighs_terms: ClassVar[bool]
    passes: ClassVar[int]

    @staticmethod
    def horizon(model: Any, sigma: Any) -> int:
        """Actions of a window."""

    @classmethod
    def build(cls, model: Any, sigma: Any, loss: Any, curriculum: Any) -> Any:
        """The objective."""


KINDS: dict[str, Any] = {'sigma': SigmaObjective, 'flow_matching': FlowMatching}


def find(name: str) -> Any:
    """The objective of this name, a `Kind`. Raises UserError where there is none."""
    if name not in KINDS:
        names = ' or '.join(map(repr, KINDS))
        raise UserError(f'config.objective: expected {names}, got {name!r}; choose one')
    return KINDS[name]
