"""From folders to rows and seeds, and what does not go together."""

import dataclasses
import json
import shutil

import pytest

from sigma_jax.data.shards.directory import Shards
from sigma_jax.errors import UserError
from sigma_jax.evaluation.compare import runs
from tests import metas


def make(folder, seed=0, step=3, **changes):
    config = {
        'objective': 'sigma',
        'base': 'base',
        'shards': 'shards',
        'trainable': ['sigma', 'lora'],
        'seed': seed,
        'steps': 3,
        'ablation': {'tau': 1.0},
    }
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config | changes))
    if step:
        (folder / 'checkpoints' / f'step_{step}').mkdir(parents=True)
    return str(folder)


@pytest.fixture
def rows(tmp_path):
    for row, changes in {
        'no_film': {'ablation': {'film': 0.0, 'tau_const': 0.0}},
        'no_tau': {'ablation': {'tau': 0.0}},
        'pi05_lora': {'objective': 'flow_matching', 'trainable': ['lora']},
        'sigma': {},
    }.items():
        for seed in (0, 2, 10):
            make(tmp_path / 'rows' / row / f'seed{seed}', seed, **changes)
    return tmp_path


def test_a_folder_of_rows(rows):
    make(rows / 'rows' / 'sigma' / 'seed11', 11, step=None)
    make(rows / 'rows' / 'sigma' / 'seed12', 12, step=2)
    (rows / 'config.json').write_text('{}')  # of the program that trained them all
    found, left_out = runs.find([str(rows)])
    assert [(t.row, t.seed) for t in found if t.row == 'sigma'] == [
        ('sigma', 0),
        ('sigma', 2),
        ('sigma', 10),
    ]
    assert {t.row: t.role for t in found} == {
        'no_film': 'ablation',
        'no_tau': 'no_tau',
        'pi05_lora': 'flow_matching',
        'sigma': 'full',
    }
    assert left_out == [str(rows / 'rows' / 'sigma' / f'seed{n}') for n in (11, 12)], (
        'no checkpoint, and not the last'
    )
    assert runs.reference_run(found).folder == rows / 'rows' / 'sigma' / 'seed0'


def test_names_of_single_folders(tmp_path):
    paths = [
        make(tmp_path / 'runs' / 'mine'),
        make(tmp_path / 'tuned' / 'seed3', 3),
        make(tmp_path / 'a', 1),
    ]
    found, _ = runs.find([paths[0], paths[1], f'mine={paths[2]}'])
    assert [(t.row, t.seed) for t in found] == [('mine', 0), ('tuned', 3), ('mine', 1)]


def test_a_sigma_without_lora_is_an_ablation(tmp_path):
    found, _ = runs.find([make(tmp_path / 'a', trainable=['sigma'])])
    assert found[0].role == 'ablation'


def test_seeds_of_a_row_differ_in_nothing_else(tmp_path):
    one, other = make(tmp_path / 'a'), make(tmp_path / 'b', 1, ablation={'tau': 0.0})
    with pytest.raises(
        UserError, match='row x: expected trainings that differ in their seed alone.*ablation.tau'
    ):
        runs.find([f'x={one}', f'x={other}'])
    with pytest.raises(UserError, match='row x: expected one training a seed, got seed 0 in'):
        runs.find([f'x={one}', f'x={make(tmp_path / "c")}'])


@pytest.mark.parametrize('changes', [{'steps': 9}, {'loader': {'augment': True}}])
def test_runs_of_other_lengths_or_data_are_no_seeds_of_one_row(tmp_path, changes):
    one, other = make(tmp_path / 'a'), make(tmp_path / 'b', 1, step=9, **changes)
    with pytest.raises(
        UserError, match='row x: expected trainings that differ in their seed alone'
    ):
        runs.find([f'x={one}', f'x={other}'])


def test_with_and_without_tau_are_trained_alike(tmp_path):
    one = make(tmp_path / 'a', optimizer={'sigma_rate': 1})
    other = make(tmp_path / 'b', optimizer={'sigma_rate': 2}, ablation={'tau': 0.0})
    with pytest.raises(
        UserError,
        match=r'with and without tau to be trained '
        r'alike.*optimizer\.sigma_rate',
    ):
        runs.find([one, other])
    further = make(tmp_path / 'c', optimizer={'sigma_rate': 2}, ablation={'film': 0.0})
    assert len(runs.find([one, further])[0]) == 2, 'other rows may be trained as they like'


def test_one_training_may_be_looked_at_before_its_end_but_not_compared(tmp_path):
    early, late = make(tmp_path / 'a', step=1), make(tmp_path / 'b')
    assert [str(t.folder) for t in runs.find([early])[0]] == [early]
    found, left_out = runs.find([early, late])
    assert [str(t.folder) for t in found] == [late] and left_out == [early]


def test_a_name_stands_before_one_training(rows):
    with pytest.raises(UserError, match='expected mine= before one training'):
        runs.find([f'mine={rows}'])


def test_who_learned_from_an_episode_is_not_judged_by_it(tmp_path):
    metas.write(tmp_path / 'own', source_digest='x', splits={'train': (1, 2, 3), 'test': (4,)})
    ours = metas.write(tmp_path / 'ours', source_digest='x', splits={'train': (1,), 'test': (3, 4)})
    metas.write(tmp_path / 'other', source_digest='y', splits={'train': (3,), 'test': ()})
    mine, far = (
        runs.find([make(tmp_path / n, shards=str(tmp_path / n[1:]))])[0][0]
        for n in ('1own', '1other')
    )
    with pytest.raises(
        UserError, match='has not learned from, got 1 of its own training episodes .*such as 3'
    ):
        runs.check_held_out(mine, ours.split('test'))
    runs.check_held_out(mine, ours.split('train'))
    runs.check_held_out(far, ours.split('test'))


def shards(folder, **splits):
    """Prepared shards as far as meta.json goes: what each of their episodes is, by split and
    number.
    """
    digests = {number: what for of in splits.values() for number, what in of.items()}
    numbers = {name: tuple(splits.get(name, {})) for name in metas.SPLITS}
    return metas.write(folder, source_digest=folder.name, splits=numbers, episode_digests=digests)


@pytest.mark.parametrize('split', ['calibration', 'test'])
def test_episodes_are_known_by_what_they_are(split, tmp_path):
    """In another folder, by another number, with another digest of all files."""
    own = shards(tmp_path / 'own', train={1: 'a', 2: 'b'}, test={3: 'c'})
    training = runs.find([make(tmp_path / 'run', shards=str(own.path))])[0][0]
    merged = shards(tmp_path / 'merged', train={0: 'x'}, **{split: {6: 'b', 7: 'y'}})
    with pytest.raises(
        UserError, match=f'of the {split} split that .* got 1 .*such as 6, which was its episode 2'
    ):
        runs.check_held_out(training, merged.split(split))
    # the same numbers, other episodes
    fresh = shards(tmp_path / 'fresh', train={1: 'a'}, **{split: {2: 'y', 3: 'c'}})
    assert runs.check_held_out(training, fresh.split(split)) == ''
    assert runs.check_held_out(training, own.split(split)) == ''


def test_a_folder_keeps_what_it_learned_from(tmp_path):
    """Its shards cut anew, or gone."""
    own = shards(tmp_path / 'own', train={1: 'a', 2: 'b'}, test={3: 'c'})
    training = runs.find([make(tmp_path / 'run', shards=str(own.path))])[0][0]
    runs.seen.note(training.folder, own.meta)
    shutil.rmtree(own.path)
    again = shards(tmp_path / 'own', train={1: 'a', 3: 'c'}, test={2: 'b'})
    with pytest.raises(UserError, match='got 1 of its own training episodes .*such as 2;'):
        runs.check_held_out(training, again.split('test'))
    other = Shards(again.path.rename(tmp_path / 'moved'), again.meta)
    with pytest.raises(UserError, match='such as 2;'):
        runs.check_held_out(training, other.split('test'))
    (training.folder / runs.seen.FILE).unlink()
    assert 'nothing says from which episodes it has learned' in runs.check_held_out(
        training, other.split('test')
    )


def test_what_cannot_be_known_is_reported(tmp_path):
    own = shards(tmp_path / 'own', train={1: 'a'}, test={3: 'a', 4: 'c'})
    training = runs.find([make(tmp_path / 'run', shards=str(own.path))])[0][0]
    said = runs.check_held_out(training, own.split('test'))
    assert 'episodes [3] of the test split are there again among those of train' in said
    older = shards(tmp_path / 'older', train={2: 'x'}, test={1: 'a'})
    older = Shards(older.path, dataclasses.replace(older.meta, episode_digests=None))
    assert 'do not say what their episodes are' in runs.check_held_out(
        training, older.split('test')
    )


def test_folders_without_training(tmp_path):
    with pytest.raises(
        UserError, match='expected a training folder at .*nowhere, got no config.json'
    ):
        runs.find([str(tmp_path / 'nowhere')])
    make(tmp_path / 'rows' / 'sigma' / 'seed0', step=None)
    with pytest.raises(UserError, match='expected finished trainings in'):
        runs.find([str(tmp_path)])


def test_no_sigma_no_report(tmp_path):
    found, _ = runs.find([make(tmp_path / 'a', objective='flow_matching', trainable=['lora'])])
    with pytest.raises(UserError, match='expected at least one training with objective sigma'):
        runs.reference_run(found)
