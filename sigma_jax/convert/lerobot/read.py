"""LeRobot's files beside a pi0.5: `config.json` and the two processor pipelines with their
statistics.

Facts from LeRobot 0.4.0 to 0.6.1: before 0.5 the prompt holds the state zero-padded to 32 entries
and images are padded with -1 before they are scaled to [-1, 1], so -3 in the model's units; from
0.5 on it is the robot's own state and black. Only 0.5.1 and later say `use_relative_actions` in
`config.json`, so its absence marks the earlier ones.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sigma_jax.convert import small_file
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import Scaling, Statistics, statistics_from
from sigma_jax.processing.spec import LEROBOT, ProcessorConfig
from sigma_jax.processing.tokenizer import NO_STATE

CONFIG, BEFORE, AFTER = 'config.json', 'policy_preprocessor.json', 'policy_postprocessor.json'
IMAGES, STATE, ACTION = 'observation.images.', 'observation.state', 'action'
MODES = {
    'QUANTILES': 'quantile', 'QUANTILE10': 'quantile10', 'MIN_MAX': 'min_max',
    'MEAN_STD': 'mean_std', 'IDENTITY': 'identity',
}  # fmt: skip
OLD: dict[str, Any] = {'prompt_state_dim': 32, 'image_padding': -3.0}  # before 0.5
STATE_STEP = 'pi05_prepare_state_tokenizer_processor_step'
NORMALIZERS = ('normalizer_processor', 'unnormalizer_processor')
LINE_END = 'lerobot.policies.pi0.processor_pi0.Pi0NewLineProcessor'
LINE_ENDS = {LINE_END, 'pi0_new_line_processor', 'smolvla_new_line_processor'}
KNOWN_STEPS = {
    'rename_observations_processor', 'to_batch_processor', 'relative_actions_processor',
    'normalizer_processor', 'tokenizer_processor', 'device_processor', 'unnormalizer_processor',
    'absolute_actions_processor', STATE_STEP, *LINE_ENDS,
}  # fmt: skip
LACK = "LeRobot's processors hold no statistics of state and actions"
MEMORY = ('use_visual_memory', 'use_proprioceptive_memory')  # 0.6.2: another model

NormStats = dict[str, Statistics]


@dataclasses.dataclass(frozen=True)
class LeRobotAssets:
    """What LeRobot's files say; `files` are those that were read, by name."""

    policy: ProcessorConfig
    statistics: NormStats | None
    files: dict[str, pathlib.Path]
    notes: tuple[str, ...] = ()


def is_here(folder: pathlib.Path) -> bool:
    """Whether `folder` holds LeRobot's files: a pipeline, or a config.json with a `type`.

    Args:
      folder: of a checkpoint.

    Returns:
      Whether it does.
    """
    return (folder / BEFORE).is_file() or (
        (folder / CONFIG).is_file() and 'type' in read_json(folder / CONFIG)
    )


def read(folder: pathlib.Path) -> LeRobotAssets:
    """Reads LeRobot's files.

    Args:
      folder: of a checkpoint.

    Returns:
      What they say.

    Raises:
      UserError: damaged files, another policy than pi0.5, or a mode or option that is not known
        here.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get('type', 'pi05') != 'pi05':
        raise UserError(
            f'expected a pi05 policy in {folder / CONFIG}, got {config["type"]!r}; choose a pi0.5'
        )
    if memory := [name for name in MEMORY if config.get(name)]:
        raise UserError(
            f'expected a pi0.5 without memory in {folder / CONFIG}, got {memory[0]}; '
            'choose another policy'
        )
    try:
        return _read(folder, config)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"expected LeRobot's processors in {folder}, got {error!r}; copy its files again"
        ) from error


def _read(folder: pathlib.Path, config: Mapping[str, Any]) -> LeRobotAssets:
    files = {
        name: folder / name for name in (CONFIG, 'train_config.json') if (folder / name).is_file()
    }
    pipelines = {
        name: read_json(folder / name) for name in (BEFORE, AFTER) if (folder / name).is_file()
    }
    files |= {name: folder / name for name in pipelines}
    steps = {
        step.get('registry_name', step.get('class')): step
        for body in pipelines.values()
        for step in body['steps']
    }
    alone = _alone(steps, pipelines)
    steps |= alone
    states = [step['state_file'] for step in steps.values() if 'state_file' in step]
    if outside := [name for name in states if pathlib.PurePath(name).name != name]:
        raise UserError(
            f'expected statistics beside the processors in {folder}, got '
            f'{outside[0]!r}; copy them there'
        )
    files |= {name: folder / name for name in states}
    scalings = _scalings(steps, config)
    statistics = _statistics(folder, steps, scalings)
    old = bool(config) and 'use_relative_actions' not in config and statistics is not None
    features = config.get('input_features') or {}
    length = _settings(steps, 'tokenizer_processor').get(
        'max_length', config.get('tokenizer_max_length', 200)
    )
    policy = dataclasses.replace(
        LEROBOT,
        relative_joints=_relative(steps, config, statistics),
        state=scalings['state'],
        actions=scalings['actions'],
        max_prompt_len=length,
        cameras=tuple(k.removeprefix(IMAGES) for k, v in features.items() if v['type'] == 'VISUAL'),
        action_steps=config.get('n_action_steps'),
        rename_map=_renames(steps),
        **(OLD if old else {}),
    )
    if LINE_ENDS & steps.keys() and STATE_STEP not in steps:
        policy = dataclasses.replace(policy, prompt_state_dim=NO_STATE)
    notes = _notes(steps, statistics, old)
    if alone and statistics is not None:
        absent, there = (AFTER, BEFORE) if BEFORE in pipelines else (BEFORE, AFTER)
        notes.append(f'no {absent}: state and actions are normalised as {there} says')
    return LeRobotAssets(policy, statistics, files, tuple(notes))


def _alone(steps: Mapping[str, Any], pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """The normaliser of the only pipeline that is here, for the other's: LeRobot saves all
    statistics in both.
    """
    if len(pipelines) != 1:
        return {}
    before, after = NORMALIZERS
    ours, other = (before, after) if BEFORE in pipelines else (after, before)
    return {other: steps[ours]} if ours in steps and other not in steps else {}


def _settings(steps: Mapping[str, Any], name: str) -> dict[str, Any]:
    return steps.get(name, {}).get('config', {})


def _scalings(steps: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Scaling]:
    out, steps_of = (
        {},
        {
            'state': ('STATE', 'normalizer_processor'),
            'actions': ('ACTION', 'unnormalizer_processor'),
        },
    )
    for name, (kind, step) in steps_of.items():
        settings = _settings(steps, step)
        modes = settings.get('norm_map') or config.get('normalization_mapping') or {}
        mode, epsilon = (
            modes.get(kind, 'QUANTILES' if not modes else 'IDENTITY'),
            settings.get('eps', 1e-8),
        )
        if mode not in MODES:
            raise UserError(
                f'expected a normalisation out of {list(MODES)} for {kind}, got '
                f'{mode!r}; use one of them'
            )
        out[name] = Scaling(MODES[mode], 'lerobot', None if epsilon == 1e-8 else float(epsilon))
    return out


def _statistics(
    folder: pathlib.Path, steps: Mapping[str, Any], scalings: Mapping[str, Scaling]
) -> NormStats | None:
    """The state's from the normaliser, the actions' from what undoes it; None where either lacks
    them.
    """
    found = {}
    sources = {
        'state': ('normalizer_processor', STATE),
        'actions': ('unnormalizer_processor', ACTION),
    }
    for name, (step, feature) in sources.items():
        file = steps.get(step, {}).get('state_file')
        tensors = small_file.read(folder / file)[0] if file else {}
        entry = {
            key.rsplit('.', 1)[1]: x
            for key, x in tensors.items()
            if key.rsplit('.', 1)[0] == feature
        }
        if not entry:
            return None
        found[name] = statistics_from(entry, scalings[name])
    return found


def _renames(steps: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    renamed = _settings(steps, 'rename_observations_processor').get('rename_map') or {}
    return tuple((str(theirs), str(ours)) for theirs, ours in renamed.items())


def _relative(
    steps: Mapping[str, Any], config: Mapping[str, Any], statistics: NormStats | None
) -> tuple[bool, ...]:
    """One flag for each action: relative unless its name holds an excluded one, as LeRobot compares
    them.

    The statistics say how many there are: `output_features` may keep the 32 of the policy that was
    fine-tuned.
    """
    settings = _settings(steps, 'relative_actions_processor')
    if not settings.get('enabled', config.get('use_relative_actions', False)):
        return ()
    names = settings.get('action_names', config.get('action_feature_names'))
    excluded = [
        str(x).lower()
        for x in settings.get('exclude_joints', config.get('relative_exclude_joints', []))
        if x
    ]
    shape = ((config.get('output_features') or {}).get(ACTION) or {}).get('shape') or [
        len(names or ())
    ]
    width = len(statistics['actions'].mean) if statistics else shape[0]
    names = [str(x).lower() for x in names or ()][:width]
    flags = [not any(part in name for part in excluded) for name in names]
    return tuple(flags + [True] * (width - len(flags)))


def _notes(steps: Mapping[str, Any], statistics: NormStats | None, old: bool) -> list[str]:
    notes = [
        f'processor step {name} is not carried out here'
        for name in steps
        if name not in KNOWN_STEPS
    ]
    if 'tokenizer_processor' in steps and not {STATE_STEP, *LINE_ENDS} & steps.keys():
        notes.append(
            f"the processors have neither {STATE_STEP} nor pi0's line end: read as pi0.5's prompt "
            'with the state'
        )
    if old:
        notes.append(
            'saved by LeRobot before 0.5.1: computed as 0.4 did, with 32 states in the prompt '
            'and image padding -3; LeRobot from 0.5 on computes these files with '
            '"prompt_state_dim": 0, "image_padding": -1 (policy.json)'
        )
    if statistics is None:
        notes.append(f'{LACK}: name their source')
    if renamed := _settings(steps, 'rename_observations_processor').get('rename_map'):
        notes.append(
            f'LeRobot renames its inputs ({json.dumps(renamed)}): kept in policy.json, by which '
            'the cameras of shards are checked'
        )
    return notes


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """An object from a JSON file.

    Args:
      file: the file.

    Returns:
      Its keys and values.

    Raises:
      UserError: anything else is there.
    """
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'expected JSON in {file}, got {error}; copy it again') from error
    if not isinstance(data, dict):
        raise UserError(f'expected an object in {file}, got {type(data).__name__}; copy it again')
    return data
