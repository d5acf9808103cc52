"""Which weights of an Orbax checkpoint are read: averaged ones wherever they are, and which were
taken is said.
"""

import numpy as np
import orbax.checkpoint as ocp
import pytest

from sigma_jax import trees
from sigma_jax.convert import checkpoint, source
from sigma_jax.errors import UserError


def save(folder, tree):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder.absolute(), tree)


@pytest.fixture(scope='module')
def weights(golden_params):
    """(raw, averaged): the latter are the golden ones."""
    averaged = trees.unflatten(
        {path: np.asarray(x) for path, x in trees.flatten(golden_params).items()}
    )
    raw = trees.unflatten(
        {path: np.asarray(x) + 1 for path, x in trees.flatten(golden_params).items()}
    )
    return raw, averaged


def valued(tree):
    return trees.unflatten({f'{path}/value': x for path, x in trees.flatten(tree).items()})


TREES = {
    'both': lambda raw, ema: {'params': raw, 'ema_params': ema},
    'nested': lambda raw, ema: {'params': {'params': raw}, 'ema_params': {'params': ema}},
    'nnx': lambda raw, ema: {'params': valued(raw), 'ema_params': valued(ema), 'step': np.ones(())},
    'state': lambda raw, ema: {
        'params': raw,
        'ema_params': ema,
        'opt_state': {'0': {'mu': raw, 'nu': raw}},
    },
    'within': lambda raw, ema: {'train_state': {'params': raw, 'ema_params': ema}},
}


@pytest.mark.parametrize('name', TREES)
def test_averaged_weights_are_taken_and_named(weights, tmp_path, name):
    save(tmp_path / 'params', TREES[name](*weights))
    found = checkpoint.load(tmp_path)
    assert trees.digest(found.params) == trees.digest(weights[1])
    (note,) = found.notes
    assert 'ema_params' in note and 'averaged weights (EMA)' in note and 'is left out' in note


def test_weights_under_two_names_alone(weights, tmp_path):
    save(tmp_path / 'params', {'params': {'params': weights[1]}})
    found = checkpoint.load(tmp_path)
    assert trees.digest(found.params) == trees.digest(weights[1]) and found.notes == ()


def test_a_raw_train_state_says_so(weights, tmp_path):
    save(
        tmp_path / 'train_state',
        {'params': weights[0], 'opt_state': {'0': {'mu': weights[1]}}, 'step': np.ones(())},
    )
    for path in (tmp_path, tmp_path / 'train_state'):
        found = checkpoint.load(path)
        assert trees.digest(found.params) == trees.digest(weights[0])
        assert 'raw weights' in found.notes[0]


def test_a_step_of_openpis_training(weights, tmp_path):
    save(tmp_path / 'params', {'params': weights[1]})
    save(tmp_path / 'train_state', {'params': weights[0], 'opt_state': {'0': {'mu': weights[0]}}})
    for path in (tmp_path, tmp_path / 'train_state'):
        found = checkpoint.load(path)
        assert trees.digest(found.params) == trees.digest(weights[1])
        assert (
            found.notes[0].startswith('params/ is taken')
            and 'train_state/ is left out' in found.notes[0]
        )


def test_what_cannot_be_chosen_is_refused(weights, tmp_path):
    save(tmp_path / 'one/params', {'student': weights[0], 'teacher': weights[1]})
    with pytest.raises(UserError, match='expected one set of weights in .*`student`, `teacher`'):
        source.open_source(tmp_path / 'one')
    save(
        tmp_path / 'two/train_state', {'opt_state': {'0': {'mu': weights[0]}}, 'step': np.ones(())}
    )
    with pytest.raises(UserError, match='got a train state without them'):
        source.open_source(tmp_path / 'two')


def test_a_folder_of_averaged_weights_beside_the_raw_ones(weights, tmp_path):
    save(tmp_path / 'params', {'params': weights[0]})
    save(tmp_path / 'ema_params', {'params': weights[1]})
    for named, expected, note in (
        (
            tmp_path,
            weights[1],
            'ema_params/ is taken, as openpi serves it: averaged weights (EMA); params/ is left '
            'out',
        ),
        (
            tmp_path / 'params',
            weights[0],
            'params/ is taken, as named: the averaged weights (EMA) lie in ema_params/',
        ),
    ):
        found = checkpoint.load(named)
        assert trees.digest(found.params) == trees.digest(expected)
        assert any(one.startswith(note) for one in found.notes)


@pytest.mark.parametrize('name', ['params_ema', 'ema', 'EMA_0999'])
def test_a_folder_of_averaged_weights_by_another_name(weights, tmp_path, name):
    save(tmp_path / 'params', {'params': weights[0]})
    save(tmp_path / name, {'params': weights[1]})
    found = checkpoint.load(tmp_path)
    assert trees.digest(found.params) == trees.digest(weights[1])
    assert any(one.startswith(f'{name}/ is taken') for one in found.notes)
    raw = checkpoint.load(tmp_path / 'params')
    assert trees.digest(raw.params) == trees.digest(weights[0])
    assert any(f'averaged weights (EMA) lie in {name}/' in one for one in raw.notes)
    save(tmp_path / 'model_ema', {'params': weights[1]})
    with pytest.raises(UserError, match='expected one folder of averaged weights'):
        source.open_source(tmp_path)


def test_weights_of_another_kind_in_the_folder_are_named(weights, tmp_path):
    save(tmp_path / 'params', {'params': weights[0]})
    (tmp_path / 'model.safetensors').write_bytes(b'')
    found = checkpoint.load(tmp_path)
    assert trees.digest(found.params) == trees.digest(weights[0])
    assert 'params/ is taken; model.safetensors is left out' in found.notes


@pytest.mark.parametrize('kept', ['PaliGemma/img', 'action_in_proj', 'PaliGemma/llm'])
def test_averaged_weights_that_are_not_whole_are_refused_with_what_they_lack(
    weights, tmp_path, kept
):
    raw, averaged = weights
    whole = trees.flatten(averaged)
    part = {path: x for path, x in whole.items() if path.startswith(kept)}
    save(tmp_path / 'params', {'params': raw, 'ema_params': trees.unflatten(part)})
    with pytest.raises(UserError, match='`ema_params` without') as caught:
        source.open_source(tmp_path)
    lacks = sorted(set(whole) - set(part))
    assert f'without {len(lacks)} of {len(whole)} leaves of `params`: {lacks[0]}, ' in str(
        caught.value
    )
    assert 'save it whole, or `params` alone' in str(caught.value)
