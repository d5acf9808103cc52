"""Language columns of LeRobot 0.6 (subtasks, plans, questions and events of a frame), carried as
JSON text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sigma_jax.data.lerobot.meta import EpisodeEntry
from sigma_jax.errors import UserError

LANGUAGE = 'language'  # the dtype of such a feature, and our name for all of a row's


def language_columns(features: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Features of language; the instruction (task_index) is none of them.

    Args:
      features: of info.json.

    Returns:
      Their keys.
    """
    return tuple(key for key, value in features.items() if value.get('dtype') == LANGUAGE)


def read_language(table: pa.Table, entry: EpisodeEntry, rows: Sequence[int]) -> Iterator[str]:
    """Yields an episode's language as JSON, {column: what stands there}.

    Args:
      table: the episode's rows.
      entry: the episode, for messages.
      rows: ascending row numbers.

    Returns:
      An iterator of texts.

    Raises:
      UserError: what stands there is no text.
    """
    for row in rows:
        try:
            values = {name: table[name][row].as_py() for name in table.column_names}
            yield json.dumps(values, sort_keys=True, ensure_ascii=False)
        except (pa.ArrowException, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f'expected text in the language columns of {entry.data}, episode {entry.index}, '
                f'got "{reason}" at frame {row}; write them again'
            ) from error
