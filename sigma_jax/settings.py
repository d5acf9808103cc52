"""Checks of settings: sections with the keys of their dataclass, rows with as many values of the
kind that it says. What is wrong becomes a sentence.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from sigma_jax.errors import UserError

KINDS = {float: 'numbers', int: 'whole numbers', bool: 'True or False', str: 'texts'}
PATTERNS = ('patterns', 'int8', 'freeze')


def check_rows(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Checks the rows of a section.

    Args:
      kind: the dataclass, whose `tuple[...]` fields say how many values of which kind.
      values: settings by field; others are not looked at.
      where: stands before a field's name in the message, such as 'config.loss.'.

    Raises:
      UserError: a row has another length, or values of another kind.
    """
    hints = typing.get_type_hints(kind)
    for name in values.keys() & hints.keys():
        check_row(f'{where}{name}', values[name], hints[name])


def check_row(name: str, value: Any, hint: Any) -> None:
    """Checks one value that is to be a row.

    Args:
      name: of the setting, for the message.
      value: as it was given.
      hint: its type, such as `tuple[float, float]` or `tuple[str, ...] | None`; others are not
        checked.

    Raises:
      UserError: another length, values of another kind, or a pattern that is no regular expression.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return
    found = [typing.get_args(one) for one in kinds if typing.get_origin(one) is tuple]
    if not found or not (inner := found[0]):
        return
    count = None if inner[-1] is Ellipsis else len(inner)
    fits = isinstance(value, (tuple, list)) and count in (None, len(value))
    if not fits or not all(is_a(inner[0], one) for one in value):
        example = '(' + ', '.join(['...'] * (count or 2)) + ')'
        raise UserError(
            f'{name}: expected {"a row of" if count is None else count} {KINDS[inner[0]]}, got '
            f"{value!r}; write --{name}='{example}'"
        )
    if name.rpartition('.')[2] in PATTERNS:
        check_patterns(name, value)


def is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a kind: a whole number is a `float` too, True is neither number.

    Args:
      kind: float, int, bool or str.
      value: anything.

    Returns:
      Whether it is.

    Examples:
      >>> from sigma_jax.settings import is_a
      >>> is_a(float, 1), is_a(float, True), is_a(int, 1.0)
      (True, False, False)
    """
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_patterns(name: str, patterns: Any) -> None:
    """Checks regular expressions.

    Args:
      name: of the setting, for the message.
      patterns: texts.

    Raises:
      UserError: one is no regular expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f'{name}: expected regular expressions, got {pattern!r} ({error}); correct it'
            ) from error


def from_section(kind: type, settings: Mapping, where: str) -> Any:
    """A frozen dataclass from a section of a config.

    Args:
      kind: the dataclass.
      settings: its fields by name; lists stand for tuples.
      where: the section's name, for messages; '' is the config itself.

    Returns:
      An instance of `kind`.

    Raises:
      UserError: unknown or missing keys, rows of another length or kind.

    Examples:
      >>> from sigma_jax.settings import from_section
      >>> from sigma_jax.sigma.curriculum import CurriculumConfig
      >>> from_section(CurriculumConfig, {'sem': [0.0, 1.0]}, 'curriculum').sem
      (0.0, 1.0)
      >>> from_section(CurriculumConfig, {'sem': [0.0]}, 'curriculum')
      Traceback (most recent call last):
      ...
      sigma_jax.errors.UserError: config.curriculum.sem: expected 2 numbers, got [0.0]; write
      --config.curriculum.sem='(..., ...)'
    """
    name = f'config.{where}' if where else 'config'
    fields = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(settings) - fields):
        raise UserError(f'{name} has unknown keys {unknown}; expected some of {sorted(fields)}')
    check_rows(kind, settings, f'{name}.')
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return kind(**plain)
    except TypeError as error:
        raise UserError(f'{name}: {error}; add the missing keys') from error
