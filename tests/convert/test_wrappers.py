"""Names as training wrappers leave them, tensors of other types, and models that are no pi0.5."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax import trees
from sigma_jax.backbones import pi05_names
from sigma_jax.convert import checkpoint, other_models, sizes, source, wrappers
from sigma_jax.errors import UserError, few
from tests import golden


@pytest.fixture(scope='module')
def tensors():
    """The golden pi0.5 as LeRobot names it."""
    return load_file(golden.FIXTURE / 'lerobot.safetensors')


@pytest.fixture
def saved(tmp_path):
    """Writes tensors as a checkpoint: its folder."""

    def save(given):
        save_file(given, tmp_path / 'model.safetensors')
        (tmp_path / 'sigma_config.json').write_text(json.dumps(sizes.to_json(golden.config())))
        return tmp_path

    return save


def bare(name):
    return name.removeprefix('model.')


WRAPPED = {
    'module': lambda name: f'module.{name}',
    'compiled': lambda name: name.replace('model.', 'model._orig_mod.', 1),
    'both': lambda name: f'module._orig_mod.{name}',
    'within': lambda name: name.replace('.layers.', '._orig_mod.layers.').replace(
        '.mlp.', '.mlp._fsdp_wrapped_module.'
    ),
    'ema': lambda name: f'ema_model.{bare(name)}',
    'ema_module': lambda name: f'ema.module.{name}',
    'lightning': lambda name: f'policy.{name}',
}


@pytest.mark.parametrize('wrapper', WRAPPED)
def test_wrapped_names_are_read(tensors, saved, wrapper):
    found = checkpoint.load(saved({WRAPPED[wrapper](name): x for name, x in tensors.items()}))
    assert trees.digest(found.params) == trees.digest(
        checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params
    )
    assert any('averaged weights (EMA)' in note for note in found.notes) == wrapper.startswith(
        'ema'
    )
    assert found.format == ('openpi-pytorch' if wrapper == 'ema' else 'lerobot')


@pytest.mark.parametrize(
    ('raw', 'averaged'), [('', 'ema_model.module.'), ('online_model.', 'ema_model.')]
)
def test_averaged_weights_are_taken_before_raw_ones(tensors, saved, raw, averaged):
    both = {f'{raw}{name}': x + 1 for name, x in tensors.items()} | {
        f'{averaged}{n}': x for n, x in tensors.items()
    }
    found = checkpoint.load(
        saved({**both, 'n_averaged': np.ones((), np.int64), 'initted': np.ones((1,), np.bool_)})
    )
    assert trees.digest(found.params) == trees.digest(
        checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params
    )
    assert any(
        'averaged weights (EMA); the raw ones beside them are left out' in note
        for note in found.notes
    )


def test_two_names_for_one_tensor_are_refused():
    for names in (
        ['module.time_mlp_in.bias', 'time_mlp_in.bias'],
        ['student.time_mlp_in.bias', 'old.time_mlp_in.bias'],
    ):
        with pytest.raises(
            UserError,
            match='expected one set of weights in x, got two names for one tensor: .*, .*bias',
        ):
            wrappers.resolve(names, pi05_names.TABLE, 'x')


def test_float64_is_read_as_float32(tensors, saved):
    found = checkpoint.load(saved({name: x.astype(np.float64) for name, x in tensors.items()}))
    assert trees.digest(found.params) == trees.digest(
        checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params
    )
    assert any('float64 are read as float32' in note for note in found.notes)


def test_a_message_names_a_few_and_counts_the_rest(tensors, saved):
    with pytest.raises(UserError, match=r'F32, BF16, F16, got I8; .* and \d+ more') as caught:
        source.open_source(saved({name: x.astype(np.int8) for name, x in tensors.items()}))
    assert len(str(caught.value)) < 900
    with pytest.raises(
        UserError, match=r'of another rank \(5\d\): .* and \d+ more; choose'
    ) as caught:
        source.open_source(saved({f'x.{n}': np.zeros(1, np.float32) for n in range(60)}))
    assert len(str(caught.value)) < 900
    assert few('abc', '') == 'abc' and few('abcdef', ', ', 2) == 'a, b and 4 more'


def test_other_models_are_known_by_name(tensors, saved, tmp_path):
    pi0 = {
        name.replace('time_mlp', 'action_time_mlp'): x
        for name, x in tensors.items()
        if '.dense.' not in name
    }
    for prefix in ('', 'module.'):
        given = {f'{prefix}{name}': x for name, x in pi0.items()} | {
            f'{prefix}model.state_proj.bias': np.zeros(8)
        }
        with pytest.raises(
            UserError,
            match='got a π0 .it has state_proj, action_time_mlp_out, action_time_mlp_in.;',
        ):
            source.open_source(saved(given))
    flat = trees.flatten(checkpoint.load(golden.FIXTURE / 'openpi_jax').params)
    jax = {path.replace('time_mlp', 'action_time_mlp'): x for path, x in flat.items()}
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((tmp_path / 'jax/params').absolute(), {'params': trees.unflatten(jax)})
    with pytest.raises(UserError, match='got a π0 .it has action_time_mlp_out'):
        source.open_source(tmp_path / 'jax')
    for name, model in {
        'model.vlm_with_expert.lm_expert.layers.0.mlp.up_proj.weight': 'a SmolVLA',
        '_groot_model.backbone.x.weight': 'a GR00T',
        'language_model.model.layers.0.mlp.up_proj.weight': 'a PaliGemma',
        'PaliGemma/llm/layers/mlp/linear': 'a PaliGemma or π0-FAST',
    }.items():
        with pytest.raises(UserError, match=f'expected a π0.5 in x, got {model}'):
            other_models.refuse(
                [name, 'model.state_proj.weight'] if 'Smol' in model else [name], 'x'
            )
    for part in ('base_layer.weight', 'lora_A.default.weight'):
        name = f'base_model.model.model.action_in_proj.{part}'
        with pytest.raises(UserError, match='got LoRA factors of PEFT beside their base'):
            source.open_source(saved({name: np.zeros((2, 2))}))
    # a pi0.5 with one too many
    other_models.refuse(['model.time_mlp_in.bias', 'model.state_proj.bias'], 'x')
