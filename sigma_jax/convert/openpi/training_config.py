"""What no weight holds and openpi keeps in its training config: horizon, steps of sampling, the
state in the prompt.

It is read where a file beside the weights says it. Where none does, it is assumed: as openpi's
public config has it whose name the folder bears (openpi saves to `checkpoints/CONFIG/RUN/STEP`),
else as openpi does by default. What is assumed is said in one line, and recorded beside what is
written, so that the next reader says it too.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.processing.tokenizer import NO_STATE

RECORD = 'source.json'
HORIZON, STEPS, PROMPT = 'action_horizon', 'sample_steps', 'prompt_state'
NAMES = (HORIZON, STEPS, PROMPT)
WIDTH = 32  # of every action and state in openpi's models, whatever the robot
DEFAULTS: dict[str, int] = {
    HORIZON: 50,
    STEPS: 10,
    PROMPT: 0,
}
# where openpi's own configs and published checkpoints of pi0.5 differ from that
PUBLIC: dict[str, dict[str, int]] = {
    'pi05_base': {},
    'pi05_aloha': {},
    'pi05_aloha_pen_uncap': {},
    'pi05_droid': {HORIZON: 15},
    'pi05_droid_finetune': {HORIZON: 16},
    'pi05_full_droid_finetune': {HORIZON: 16},
    'pi05_libero': {HORIZON: 10, PROMPT: NO_STATE},
}
LEVELS = 3  # of folders above a step's: its run and its config, and one for `params`
BY_DEFAULT = 'openpi by default'


def assumed_values(folder: pathlib.Path) -> tuple[dict[str, int], str]:
    """Each name's value where no file says it, and where that comes from.

    Args:
      folder: of a checkpoint.

    Returns:
      values: {name: number}.
      origin: in words.
    """
    place = folder.absolute()
    for one in (place, *place.parents[:LEVELS]):
        if one.name in PUBLIC:
            return DEFAULTS | PUBLIC[one.name], (
                f"openpi's public config {one.name}, whose name the folder bears"
            )
    return DEFAULTS, BY_DEFAULT


def complete(
    hints: Mapping[str, Any], folder: pathlib.Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Hints completed with horizon and steps.

    Args:
      hints: that files gave.
      folder: of the checkpoint.

    Returns:
      hints: complete.
      assumed: {name of what is assumed: where that comes from}.
    """
    values, origin = assumed_values(folder)
    missing = [name for name in (HORIZON, STEPS) if name not in hints]
    recorded = {name: one for name, one in recorded_assumptions(folder).items() if name in hints}
    return {**hints, **{name: values[name] for name in missing}}, recorded | dict.fromkeys(
        missing, origin
    )


def recorded_assumptions(folder: pathlib.Path) -> dict[str, str]:
    """What the conversion that wrote a folder assumed.

    Args:
      folder: of the checkpoint.

    Returns:
      {name: origin}; {} where it assumed nothing, or none wrote it.
    """
    try:
        found = json.loads((folder / RECORD).read_text())['assumed']
        return {name: str(found[name]) for name in NAMES if name in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def assumption_notes(
    assumed: Mapping[str, str], config: BackboneConfig, prompt_state: int | None
) -> list[str]:
    """A line that says what is assumed, from where, and how to set it; none where nothing is.

    Args:
      assumed: {name: origin}.
      config: sizes of the policy.
      prompt_state: numbers of a state in the prompt; None: not known.

    Returns:
      The lines.
    """
    values = {HORIZON: config.action_horizon, STEPS: config.sample_steps}
    texts = {name: f'{name} {value}' for name, value in values.items()} | {
        PROMPT: prompt_text(prompt_state)
    }
    names = [name for name in NAMES if name in assumed]
    if not names:
        return []
    said = ', '.join(texts[name] for name in names)
    origins = ' and '.join(dict.fromkeys(assumed[name] for name in names))
    flags = ', '.join(f'--{name}' for name in names)
    return [
        f'assumed, as no file here says it: {said} (as {origins}); where the training had others, '
        f'give convert_weights.py {flags}'
    ]


def prompt_text(prompt_state: int | None) -> str:
    """In words, what of the state the prompt holds.

    Args:
      prompt_state: numbers of a state in the prompt; None: not known.

    Returns:
      In words.
    """
    if prompt_state == NO_STATE:
        return 'a prompt without state'
    return (
        f'a prompt with the state padded to {prompt_state}'
        if prompt_state
        else "a prompt with the robot's state"
    )
