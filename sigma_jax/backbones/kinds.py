"""The kinds of backbones that there are, and which one a name, a config or a checkpoint means."""

from collections.abc import Collection

from sigma_jax.backbones.base import BackboneConfig, BackboneSpec
from sigma_jax.backbones.pi05_spec import PI05
from sigma_jax.errors import UserError

KINDS: dict[str, BackboneSpec] = {spec.name: spec for spec in (PI05,)}
USUAL = PI05  # where nothing says which


def find(name: str) -> BackboneSpec:
    """The spec of a name.

    Args:
      name: as a config's `model.kind` has it.

    Returns:
      The spec.

    Raises:
      UserError: there is none.
    """
    if name not in KINDS:
        raise UserError(
            f'config.model.kind: expected {" or ".join(map(repr, KINDS))}, got {name!r}; choose one'
        )
    return KINDS[name]


def of(config: BackboneConfig) -> BackboneSpec:
    """The spec that a model's config is of.

    Args:
      config: its sizes.

    Returns:
      The spec whose class of configs it is of.
    """
    for spec in KINDS.values():
        if isinstance(config, spec.config):
            return spec
    raise TypeError(f'expected the config of a backbone in backbones.kinds, got {config!r}')


def of_names(names: Collection[str]) -> BackboneSpec | None:
    """The spec whose checkpoints have such names.

    Args:
      names: of all tensors or leaves of a checkpoint, a training's wrappers before them or not.

    Returns:
      The spec; None where no kind has such checkpoints.
    """
    for spec in KINDS.values():
        if any(map(spec.mark.fullmatch, names)):
            return spec
    return None


def tops() -> frozenset[str]:
    """First keys of the leaves of all kinds, where public checkpoints keep them in our own tree."""
    rules = (rule for spec in KINDS.values() for rule in spec.names.rules)
    return frozenset(rule.path.partition('/')[0] for rule in rules)
