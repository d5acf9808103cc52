"""LeRobot and openpi load what is written for them, and compute the same as before the conversion
(marker `reference`).

Run inside an environment with LeRobot, or openpi, beside this project; a test whose library is
absent fails.
"""

import dataclasses
import importlib

import numpy as np
import pytest

from sigma_jax.backbones.pi05 import Pi05Config
from sigma_jax.backbones.pi05_prompt import prompt_parts
from sigma_jax.convert import assets
from sigma_jax.processing.normalize import denormalize, normalize
from sigma_jax.processing.processor import of_policy
from sigma_jax.processing.spec import OPENPI
from sigma_jax.processing.tokenizer import load_tokenizer
from tests import golden
from tests.data.policies.make_reference import CAMERAS, ROOT, TASK, raw_inputs, small_tokenizer

pytestmark = pytest.mark.reference
POLICIES = golden.DATA / 'policies'
VIEWS = {f'observation.images.{name}' for name in CAMERAS}


def written(source, out, layout):
    """(what was written from, the folder): a full-size policy, LeRobot's own files regenerated."""
    found = assets.read(POLICIES / source)
    if source == 'openpi':
        found = dataclasses.replace(found, policy=dataclasses.replace(OPENPI, cameras=CAMERAS))
    bare = dataclasses.replace(found, files={})
    assets.write(out, layout, bare, Pi05Config(), 'bfloat16')
    return bare, out


def load_pipelines(folder):
    """LeRobot's own loader, with a stand-in for the gated tokenizer."""
    import transformers
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import (
        policy_action_to_transition,
        transition_to_policy_action,
    )

    importlib.import_module('lerobot.policies.pi05.processor_pi05')  # registers its steps
    special = {'pad_token': '<pad>', 'bos_token': '<bos>'}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=small_tokenizer(), **special)
    before = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename='policy_preprocessor.json',
        overrides={'tokenizer_processor': {'tokenizer': fast}},
    )
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename='policy_postprocessor.json',
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after


@pytest.mark.parametrize(
    'source',
    ['openpi', 'lerobot_0_4_4', 'lerobot_mean_std', 'lerobot_min_max', 'lerobot_quantile10'],
)
def test_lerobot_loads_and_computes_the_same(tmp_path, source):
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    found, folder = written(source, tmp_path, 'lerobot')
    config = PreTrainedConfig.from_pretrained(folder)
    assert isinstance(config, PI05Config) and config.dtype == 'bfloat16' and config.chunk_size == 50
    assert set(config.image_features) == VIEWS and config.action_feature.shape == (6,)
    before, after = load_pipelines(folder)
    raw = raw_inputs()
    batch = before({'observation.state': torch.from_numpy(raw['state']), 'task': TASK})
    want = normalize(raw['state'], found.statistics['state']).astype(np.float32)
    got = batch['observation.state'][0].numpy()
    moved = found.statistics['state'].std > 0
    np.testing.assert_allclose(got[moved], want[moved], atol=2e-7)
    actions = after(torch.from_numpy(raw['model_actions'][0])).numpy()
    np.testing.assert_allclose(
        actions, denormalize(raw['model_actions'][0], found.statistics['actions']), atol=3e-5
    )
    tokens = batch['observation.language.tokens'][0][
        batch['observation.language.attention_mask'][0]
    ]
    # by LeRobot's version
    padded = dataclasses.replace(found.policy, prompt_state_dim=32 if len(tokens) > 50 else 0)
    views = {name: raw[name] for name in CAMERAS}
    tokenizer = load_tokenizer(ROOT / 'assets' / 'tokenizer' / 'tokenizer.json')
    processor = of_policy(padded, found.statistics, tokenizer, 28, prompt_parts)
    ours = processor.inputs(views, raw['state'], TASK)
    assert tokens.tolist() == ours['prompt'][ours['prompt_mask']].tolist()


def test_lerobot_reads_relative_actions(tmp_path):
    """LeRobot 0.5.1 and later."""
    import torch
    from lerobot.configs.policies import PreTrainedConfig

    found, folder = written('lerobot_0_6_1', tmp_path, 'lerobot')
    assert PreTrainedConfig.from_pretrained(folder).use_relative_actions
    before, after = load_pipelines(folder)
    relative = next(step for step in before.steps if hasattr(step, 'exclude_joints'))
    next(step for step in after.steps if hasattr(step, 'relative_step')).relative_step = relative
    raw = raw_inputs()
    before({'observation.state': torch.from_numpy(raw['state']), 'task': TASK})
    actions = np.stack(
        [after(step[None])[0].numpy() for step in torch.from_numpy(raw['model_actions'][0])]
    )
    np.testing.assert_allclose(
        actions, np.load(POLICIES / 'lerobot_0_6_1' / 'reference.npz')['actions'][0], atol=1e-6
    )
    assert relative._build_mask(6) == list(found.policy.relative_joints)


@pytest.mark.parametrize('source', ['openpi', 'lerobot_0_4_4', 'lerobot_mean_std'])
@pytest.mark.parametrize('layout', ['jax', 'openpi-pytorch'])
def test_openpi_loads_and_computes_the_same(tmp_path, source, layout):
    import openpi.shared.normalize
    import openpi.transforms

    found, folder = written(source, tmp_path, layout)
    stats = openpi.shared.normalize.load(folder / 'assets' / 'robot')
    raw = raw_inputs()
    got = openpi.transforms.Normalize(stats, use_quantiles=True)({'state': raw['state']})['state']
    moved = found.statistics['state'].std > 0
    np.testing.assert_allclose(
        got[moved], normalize(raw['state'], found.statistics['state'])[moved], atol=2e-6
    )
    undo = openpi.transforms.Unnormalize(stats, use_quantiles=True)
    actions = undo({'state': got, 'actions': raw['model_actions'].astype(np.float64)})['actions']
    np.testing.assert_allclose(
        actions, denormalize(raw['model_actions'], found.statistics['actions']), atol=3e-5
    )
