"""LeRobot's files for a policy from elsewhere: `config.json`, both processor pipelines, their
statistics.

Only fields that LeRobot has had since 0.4.0 are written, so that every version since then accepts
them; but for a policy with relative actions, which LeRobot knows from 0.5.1 on.
"""

import json
import pathlib
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file

from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.convert.lerobot.read import (
    ACTION,
    AFTER,
    BEFORE,
    CONFIG,
    IMAGES,
    LINE_END,
    MODES,
    STATE,
    STATE_STEP,
    NormStats,
)
from sigma_jax.processing.normalize import Scaling, Statistics
from sigma_jax.processing.spec import OPENPI_CAMERAS, PROMPT_LENGTH, ProcessorConfig
from sigma_jax.processing.tokenizer import NO_STATE

TOKENIZER = 'google/paligemma-3b-pt-224'
VOCABULARY = 257152  # rows of that tokenizer's table
# width, depth, mlp: those LeRobot builds
VARIANTS = {(2048, 18, 16384): 'gemma_2b', (1024, 18, 4096): 'gemma_300m'}

Step = dict[str, Any]


class Experts(BackboneConfig, Protocol):
    """A model of two transformers joined layer by layer, which LeRobot's policy `pi05` is."""

    @property
    def language(self) -> Any:
        """Sizes of the one that reads: width, depth, mlp_dim."""

    @property
    def expert(self) -> Any:
        """Sizes of the one that acts."""


def write(
    folder: pathlib.Path,
    policy: ProcessorConfig,
    statistics: NormStats | None,
    config: Experts,
    dtype: str,
) -> list[str]:
    """Writes LeRobot's files.

    Args:
      folder: where to.
      policy: settings.
      statistics: or None.
      config: sizes of the policy.
      dtype: 'float32' or 'bfloat16'.

    Returns:
      What could not be said in them.
    """
    widths = _widths(statistics, config)
    features = _features(policy, widths, config)
    files = {
        CONFIG: config_json(policy, features, config, dtype),
        BEFORE: _pipeline('policy_preprocessor', _before(policy, features)),
        AFTER: _pipeline('policy_postprocessor', _after(policy, features)),
    }
    if statistics is not None:
        columns = tensors(statistics)
        for body in (files[BEFORE], files[AFTER]):
            for number, step in enumerate(body['steps']):
                if step.get('registry_name', '').endswith('normalizer_processor'):
                    step['state_file'] = (
                        f'{body["name"]}_step_{number}_{step["registry_name"]}.safetensors'
                    )
                    save_file(columns, folder / step['state_file'])
    for name, body in files.items():
        (folder / name).write_text(json.dumps(body, indent=2))
    return _notes(policy, statistics, config)


def config_json(
    policy: ProcessorConfig, features: dict[str, Any], config: Experts, dtype: str
) -> dict[str, Any]:
    """The contents of config.json.

    Args:
      policy: settings.
      features: of its inputs and outputs.
      config: sizes of the policy.
      dtype: of the weights.

    Returns:
      For JSON.
    """
    relative: dict[str, Any] = {}
    if any(policy.relative_joints):
        settings = _relative_settings(policy)
        relative = {
            'use_relative_actions': True,
            'relative_exclude_joints': settings['exclude_joints'],
            'action_feature_names': settings['action_names'],
        }
    return {
        'type': 'pi05',
        'n_obs_steps': 1,
        'input_features': {key: value for key, value in features.items() if key != ACTION},
        'output_features': {ACTION: features[ACTION]},
        'paligemma_variant': variant(config.language, 'gemma_2b'),
        'action_expert_variant': variant(config.expert, 'gemma_300m'),
        'dtype': dtype,
        'chunk_size': config.action_horizon,
        'n_action_steps': policy.action_steps or config.action_horizon,
        'max_state_dim': config.action_dim,
        'max_action_dim': config.action_dim,
        'num_inference_steps': config.sample_steps,
        **relative,
        'image_resolution': [config.image_size] * 2,
        'empty_cameras': 0,
        'tokenizer_max_length': policy.max_prompt_len or PROMPT_LENGTH,
        'normalization_mapping': _modes(policy),
    }


def _before(policy: ProcessorConfig, features: dict[str, Any]) -> list[Step]:
    relative = (
        [_step('relative_actions_processor', _relative_settings(policy))]
        if any(policy.relative_joints)
        else []
    )
    tokens = {
        'max_length': policy.max_prompt_len or PROMPT_LENGTH,
        'task_key': 'task',
        'padding_side': 'right',
        'padding': 'max_length',
        'truncation': True,
        'tokenizer_name': TOKENIZER,
    }
    return [
        _step('rename_observations_processor', {'rename_map': dict(policy.rename_map)}),
        _step('to_batch_processor', {}),
        *relative,
        _step('normalizer_processor', _normalizer(policy, features, policy.state)),
        _prompt_step(policy),
        _step('tokenizer_processor', tokens),
        _step('device_processor', {'device': 'cpu', 'float_dtype': None}),
    ]


def _after(policy: ProcessorConfig, features: dict[str, Any]) -> list[Step]:
    absolute = (
        [_step('absolute_actions_processor', {'enabled': True})]
        if any(policy.relative_joints)
        else []
    )
    undo = _normalizer(policy, {ACTION: features[ACTION]}, policy.actions)
    return [
        _step('unnormalizer_processor', undo),
        *absolute,
        _step('device_processor', {'device': 'cpu', 'float_dtype': None}),
    ]


def _prompt_step(policy: ProcessorConfig) -> Step:
    """What makes a prompt of the task: pi0.5's state, or pi0's line end alone.

    The latter by its class, which every LeRobot imports: only pi0's own loader registers its name.
    """
    return (
        {'class': LINE_END, 'config': {}}
        if policy.prompt_state_dim == NO_STATE
        else _step(STATE_STEP, {})
    )


def _step(name: str, settings: dict[str, Any]) -> Step:
    return {'registry_name': name, 'config': settings}


def _pipeline(name: str, steps: list[Step]) -> dict[str, Any]:
    return {'name': name, 'steps': steps}


def _normalizer(
    policy: ProcessorConfig, features: dict[str, Any], scaling: Scaling
) -> dict[str, Any]:
    return {'eps': scaling.added, 'features': features, 'norm_map': _modes(policy)}


def _modes(policy: ProcessorConfig) -> dict[str, str]:
    theirs = {ours: name for name, ours in MODES.items()}
    return {
        'VISUAL': 'IDENTITY',
        'STATE': theirs[policy.state.mode],
        'ACTION': theirs[policy.actions.mode],
    }


def _relative_settings(policy: ProcessorConfig) -> dict[str, Any]:
    """LeRobot names relative joints; these stand for the joints' own, which no file here
    has.
    """
    names = [f'joint_{n:02d}' for n in range(len(policy.relative_joints))]
    kept = [
        name for name, relative in zip(names, policy.relative_joints, strict=True) if not relative
    ]
    return {'enabled': True, 'exclude_joints': kept, 'action_names': names}


def _features(policy: ProcessorConfig, widths: dict[str, int], config: Experts) -> dict[str, Any]:
    size = config.image_size
    names = policy.cameras or OPENPI_CAMERAS
    views = {IMAGES + name: {'type': 'VISUAL', 'shape': [3, size, size]} for name in names}
    state = {'type': 'STATE', 'shape': [widths['state']]}
    return {**views, STATE: state, ACTION: {'type': 'ACTION', 'shape': [widths['actions']]}}


def _widths(statistics: NormStats | None, config: Experts) -> dict[str, int]:
    names = ('state', 'actions')
    return {name: len(statistics[name].mean) if statistics else config.action_dim for name in names}


def tensors(statistics: NormStats) -> dict[str, np.ndarray]:
    """Statistics as LeRobot stores them; ranges that our formula guards are written as it uses
    them.

    Args:
      statistics: of 'state' and 'actions'.

    Returns:
      {feature.column: float32}.
    """
    out: dict[str, np.ndarray] = {}
    for name, feature in (('state', STATE), ('actions', ACTION)):
        columns = guarded(statistics[name]).columns()
        out |= {f'{feature}.{key}': column.astype(np.float32) for key, column in columns.items()}
    return out


def guarded(one: Statistics) -> Statistics:
    """q99 moved to where our formula has its 1, in near-constant joints: others divide by what the
    file says.

    Args:
      one: statistics.

    Returns:
      The statistics.
    """
    if one.scaling.formula != 'sigma' or one.q01 is None or one.q99 is None:
        return one
    moved = {'q99': np.where(one.near_constant, one.q01 + one.span, one.q99)}
    return Statistics(**{**one.columns(), **moved}, scaling=one.scaling)


def variant(sizes: Any, default: str) -> str:
    """The name LeRobot and openpi have for a transformer of these sizes, `default` where they have
    none.

    Args:
      sizes: of a transformer.
      default: where LeRobot and openpi have no name for them.

    Returns:
      The name.
    """
    return VARIANTS.get((sizes.width, sizes.depth, sizes.mlp_dim), default)


def prompt_notes(policy: ProcessorConfig, statistics: NormStats | None) -> list[str]:
    """What LeRobot's files cannot say of the prompt's state.

    Args:
      policy: settings.
      statistics: or None.

    Returns:
      Sentences.
    """
    if policy.prompt_state_dim == NO_STATE:
        return [
            f"the prompt has no state: {BEFORE} has pi0's step of a line end in place of pi0.5's "
            'of the state, and takes outer spaces, underscores and line ends of a task as they '
            'are, unlike openpi'
        ]
    if policy.prompt_state_dim is None or policy.prompt_state_dim == 0:
        return [
            "LeRobot before 0.5 pads the prompt's state to 32 entries, which this policy never saw"
        ]
    if statistics and len(statistics['state'].mean) < policy.prompt_state_dim:
        return [
            "LeRobot from 0.5 on writes the robot's own state into the prompt, not the padded one"
        ]
    return []


def _notes(policy: ProcessorConfig, statistics: NormStats | None, config: Experts) -> list[str]:
    notes = []
    if not policy.cameras:
        notes.append(
            f'the cameras of this policy are not known: {CONFIG} names {", ".join(OPENPI_CAMERAS)}'
        )
    if any((s.width, s.depth, s.mlp_dim) not in VARIANTS for s in (config.language, config.expert)):
        notes.append(
            f"LeRobot builds only gemma_2b and gemma_300m: {CONFIG} cannot say this model's sizes"
        )
    if config.vocab_size != VOCABULARY:
        notes.append(f'LeRobot takes {TOKENIZER} as its tokenizer: hand it tokenizer.json instead')
    if any(policy.relative_joints):
        notes.append(
            f'relative actions need LeRobot 0.5.1; {BEFORE} calls the joints joint_00 and on'
        )
    if policy.resize != 'lerobot':
        notes.append(
            'LeRobot resizes without smoothing, unlike the original: hand it images '
            'of the right size'
        )
    notes += prompt_notes(policy, statistics)
    if statistics is None:
        notes.append(
            'statistics of state and actions are not known: hand LeRobot those of a data set'
        )
        return notes
    for name, one in statistics.items():
        still = (
            np.flatnonzero(one.near_constant)
            if one.scaling.mode in ('quantile', 'quantile10', 'min_max')
            else ()
        )
        if len(still) and one.scaling.formula == 'openpi':
            notes.append(
                f'{name} {", ".join(map(str, still))} hardly move: LeRobot divides by their range '
                'without 1e-6'
            )
        elif len(still) and one.scaling.formula == 'sigma':
            notes.append(
                f'{name} {", ".join(map(str, still))} hardly move: q99 is written where '
                'ours has its 1'
            )
    return notes
