"""Rows and seeds of an ablation as one frozen value, made once from what a config file returns."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.settings import from_section, is_a, section
from sigma_jax.types import Ablation

KEYS = ('rows', 'seeds', 'at_once', 'order')  # the last in a run's config.json, which sorts rows
SHOWN = 'configs/ablations.py shows one'


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows of gates and seeds that are trained side by side.

    Attributes:
      rows: names with all their gates, in order; each name is a folder's.
      seeds: of each row.
      at_once: trainings that a device computes at a time; 0: what suits it.

    Raises:
      UserError: no rows or no seeds, one of them twice, or a name that is no folder's.
    """

    rows: tuple[tuple[str, Ablation], ...]
    seeds: tuple[int, ...]
    at_once: int = 0

    def __post_init__(self) -> None:
        if wrong := [seed for seed in self.seeds if not is_a(int, seed)]:
            raise UserError(
                f'ablations: expected whole numbers as seeds, got {wrong[0]!r}; correct it'
            )
        if not self.rows or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(
                f'ablations: expected rows and different seeds, got {len(self.rows)} rows and '
                f'seeds {list(self.seeds)}; {SHOWN}'
            )
        names = [name for name, _ in self.rows]
        for name in names:
            if not isinstance(name, str) or not name.isidentifier():
                raise UserError(
                    f'ablations: expected a name of letters, digits and _, got {name!r}; rename '
                    'the row'
                )
        if len(set(names)) < len(names):
            raise UserError(f'ablations: expected different rows, got {names}; rename one of them')
        if not is_a(int, self.at_once) or self.at_once < 0:
            raise UserError(
                f'ablations: expected at_once of 0 or more members, got {self.at_once!r}; 0 takes '
                'what suits the device'
            )

    @classmethod
    def from_dict(cls, settings: Any, own: Ablation = Ablation()) -> 'Grid':
        """The grid that a dictionary describes.

        Args:
          settings: `rows`, names with the gates that each changes, as a mapping or as pairs;
            `seeds`; and `at_once`. What a file such as configs/ablations.py returns.
          own: the gates of the run, which a row changes.

        Returns:
          The grid.

        Raises:
          UserError: missing or unknown keys, a gate that does not exist, or values of another kind.

        Examples:
          >>> from sigma_jax.training.grid import Grid
          >>> rows = {'sigma': {}, 'no_tau': {'tau': 0.0}}
          >>> grid = Grid.from_dict({'rows': rows, 'seeds': (0, 1)})
          >>> [name for name, _ in grid.rows], grid.rows[1][1].tau, grid.seeds
          (['sigma', 'no_tau'], 0.0, (0, 1))
        """
        known = section(settings, 'ablations')
        if missing := sorted({'rows', 'seeds'} - set(known)):
            raise UserError(
                f'config.ablations: expected a file with rows and seeds, got none of {missing} in '
                f'it; {SHOWN}'
            )
        if unknown := sorted(set(known) - set(KEYS)):
            raise UserError(
                f'ablations: expected some of {sorted(KEYS)}, got unknown {unknown}; correct them'
            )
        rows = _rows(known['rows'], own)
        seeds = known['seeds']
        if not isinstance(seeds, tuple | list | range):
            raise UserError(
                f'ablations.seeds: expected a row of whole numbers, got {seeds!r}; '
                'write seeds = (0, 1)'
            )
        return cls(_ordered(rows, known.get('order')), tuple(seeds), known.get('at_once', 0))

    @classmethod
    def of(cls, grid: 'Grid | Mapping[str, Any]', own: Ablation = Ablation()) -> 'Grid':
        """A grid, whether it is one already or a dictionary that describes one.

        Args:
          grid: either.
          own: the gates of the run, which a row of a dictionary changes.

        Returns:
          The grid.

        Raises:
          UserError: as `from_dict` does.
        """
        return grid if isinstance(grid, cls) else cls.from_dict(grid, own)


def numbers(values: Mapping[str, Any], where: str) -> dict[str, float]:
    """Gates as numbers; the text 'inf' is one.

    Args:
      values: {gate: number or text}.
      where: they are from, for the message.

    Returns:
      {gate: number}.

    Raises:
      UserError: a value is no number.
    """
    try:
        return {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{where}: expected gates that are numbers, got {dict(values)}; 0 switches a part off'
        ) from error


def gates(values: Any) -> Ablation:
    """The gates of a run from its section `ablation`.

    Args:
      values: {gate: number or text}.

    Returns:
      The gates; those that it does not name are as usual.

    Raises:
      UserError: a gate that does not exist, or a value that is no number.
    """
    return from_section(Ablation, numbers(section(values, 'ablation'), 'ablation'), 'ablation')


def _rows(rows: Any, own: Ablation) -> list[tuple[str, Ablation]]:
    """Names and all gates, from a mapping or pairs of names and changes."""
    try:
        pairs = rows.items() if isinstance(rows, Mapping) else rows
        changes = [(name, dict(changed)) for name, changed in pairs]
    except (TypeError, ValueError) as error:
        raise UserError(
            f'ablations.rows: expected names with the gates that each changes, got {rows!r}; '
            f'{SHOWN}'
        ) from error
    known = [field.name for field in dataclasses.fields(Ablation)]
    for name, changed in changes:
        if unknown := sorted(set(changed) - set(known), key=str):
            raise UserError(
                f'ablations: expected gates out of {sorted(known)} in row {name!r}, got {unknown}; '
                'correct its name'
            )
    usual = dataclasses.asdict(own)
    return [(name, Ablation(**numbers(usual | new, 'ablations'))) for name, new in changes]


def _ordered(
    rows: list[tuple[str, Ablation]], order: Iterable[str] | None
) -> tuple[tuple[str, Ablation], ...]:
    """The rows in an order that is written down beside them."""
    if order is None:
        return tuple(rows)
    found = dict(rows)
    if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(found):
        raise UserError(
            f'ablations.order: expected the names {sorted(found)}, got {order!r}; leave it out'
        )
    return tuple((name, found[name]) for name in order)
