"""Which leaves learn: the groups that a config lists, and what they ask of the base."""

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.training.config import RunConfig
from sigma_jax.types import PyTree


def check_groups(config: RunConfig) -> frozenset[str]:
    """The groups that `config.trainable` lists.

    Args:
      config: of a run.

    Returns:
      Some of 'sigma', 'lora' and 'params'.

    Raises:
      UserError: groups that the objective does not train.
    """
    groups = frozenset(config.trainable)
    if unknown := groups - {'sigma', 'lora', 'params'}:
        raise UserError(
            f"config.trainable: expected some of 'sigma', 'lora', 'params', got {sorted(unknown)}"
        )
    if groups not in (choices := config.kind.groups):
        raise UserError(
            f'config.trainable: objective {config.objective!r} expects '
            f'{" or ".join(str(tuple(sorted(c, reverse=True))) for c in choices)}, got '
            f'{config.trainable}; choose one'
        )
    return groups


def check_storage(config: RunConfig) -> None:
    """Refuses a base that is to learn and would be stored in another dtype than its own.

    Args:
      config: of a run.

    Raises:
      UserError: it is so.
    """
    how = config.quant
    if how.changes and 'params' in config.trainable:
        raise UserError(
            "config.quant: expected kind 'stored' and no int8 where the base itself learns "
            f"(trainable 'params'), got {how.kind!r} and {list(how.int8)}; train factors beside a "
            "quantised base: config.trainable=('lora',)"
        )


def split_learning(params: PyTree, freeze: tuple[str, ...]) -> tuple[dict, dict]:
    """({path: leaf} of what learns, of what stays) where the base itself is trained.

    Args:
      params: of the base.
      freeze: patterns of the paths that stay.

    Returns:
      learning: {path: leaf}.
      staying: {path: leaf}.
    """
    flat, held = trees.flatten(params), trees.flatten(trees.select(params, freeze))
    learning = {path: leaf for path, leaf in flat.items() if not held[path]}
    return learning, {path: leaf for path, leaf in flat.items() if held[path]}
