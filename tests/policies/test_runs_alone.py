"""A training acts where neither its shards nor its data are, by the record that it has kept."""

import json
import shutil
import sys

import huggingface_hub.constants
import pytest

import serve
import sigma_jax as sj
from sigma_jax.api.policies import load_policy
from sigma_jax.convert import checkpoint
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.errors import UserError
from sigma_jax.hub.download import local_path
from sigma_jax.training import acting_record, trainer
from sigma_jax.training.build import build
from sigma_jax.training.config import RunConfig
from sigma_jax.training.export import export_run
from sigma_jax.training.folder import RunFolder
from tests.hub_server import on_hub
from tests.small_run import flow_config
from tests.trained_runs import alone, first_episode, recorded, same


@pytest.fixture(scope='module')
def run(rows, tmp_path_factory):
    """A Sigma whose shards, tokenizer and base are nowhere."""
    out = tmp_path_factory.mktemp('run') / 'sigma'
    return alone(rows / 'sigma' / 'seed0', out, base='nowhere/base')


def test_a_run_acts_by_hub_id(small_run, rows, run, tmp_path, monkeypatch):
    """As it does through its shards; of its folder no more is fetched than that takes."""
    copy = shutil.copytree(run, tmp_path / 'run')
    (copy / 'tensorboard').mkdir()
    (copy / 'tensorboard' / 'events').write_bytes(b'x')
    with on_hub(copy, tmp_path / 'cache', monkeypatch) as asked:
        shutil.rmtree(copy)
        found = load_policy('robots/tiny@v1', base=small_run.base)
        told = sj.forecast_serving('robots/tiny@v1', card='l4', base=small_run.base)
    want = load_policy(rows / 'sigma' / 'seed0')
    for seen in recorded(small_run, first_episode(small_run))[:3]:
        assert same(found.infer(seen), want.infer(seen))
    assert told.parts == sj.forecast_serving(small_run.base, card='l4').parts
    fetched = {path.rpartition('/')[2] for _, path, _ in asked}
    assert 'data.json' in fetched and 'events' not in fetched


def test_words_of_any_kind_are_fetched_with_it(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    (folder / 'acting').mkdir(parents=True)
    (folder / 'acting' / 'tokenizer.model').write_bytes(b'words')
    with on_hub(folder, tmp_path / 'cache', monkeypatch):
        found = local_path('robots/tiny@v1')
    assert (found / 'acting' / 'tokenizer.model').read_bytes() == b'words'


def test_a_base_that_is_elsewhere_is_asked_for(small_run, rows, run, tmp_path, monkeypatch):
    """By a sentence, and of no hub: what was a folder is no hub id, whatever it looks like."""
    with on_hub(run, tmp_path / 'cache', monkeypatch) as asked:
        for opens in (load_policy, lambda folder: sj.forecast_serving(folder, card='l4')):
            with pytest.raises(
                UserError, match='at nowhere/base, got nothing there, seen from /.*; name it with'
            ):
                opens(run)
        assert not asked
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    older = shutil.copytree(run, tmp_path / 'older')
    shutil.rmtree(older / 'acting')
    for folder, base in ((run, 'owner/none'), (older, '')):
        with pytest.raises(UserError, match='around at .*/.*, got: .*; if it is elsewhere, name'):
            load_policy(folder, base=base)
    assert load_policy(run, base=small_run.base).spec.horizon == 16


def test_another_base_is_refused(small_run, run, rows, tmp_path):
    """Around a Sigma, and around factors, whose shards say nothing of the base."""
    loaded = checkpoint.load(small_run.base)
    loaded.params['action_in_proj']['bias'][:] += 1
    other = checkpoint.save(loaded, small_run.base, tmp_path / 'other')
    lora = alone(rows / 'pi05_lora' / 'seed0', tmp_path / 'lora')
    drawn = alone(small_run.flow, tmp_path / 'flow')  # began with weights from a seed
    for folder in (run, lora, drawn):
        with pytest.raises(UserError, match=r'trained around \(digest .*; name it with base='):
            load_policy(folder, base=other)


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        ({'acting': None}, 'record of a policy that can act in .*; export the run again, or run'),
        ({'base': {'digest': 5}}, 'record of a policy that can act in .*, got none of digest 5'),
        ({'acting': {'tokenizer': 5}}, 'record of a policy .*, got none of tokenizer'),
        ({'acting': {'sampled': {'seed': 'x'}}}, 'record of a policy .*, got none of seed'),
        ({'acting': {'sampled': {'more': 1}}}, "record of a policy .*, got none of 'more'"),
        ({'acting': {'stats_from': 'x'}}, 'record of a policy .*, got none of stats_from'),
        ({'acting': {'relative_joints': [1]}}, 'record of a policy .*, got none of relative'),
        ({'acting': {'robot': {}}}, 'robot of a policy in .*, got one without'),
    ],
)
def test_a_damaged_record_is_named(small_run, run, tmp_path, damage, sentence):
    folder = shutil.copytree(run, tmp_path / 'run')
    record = folder / 'acting' / 'export.json'
    told = json.loads(record.read_text())
    for name, value in damage.items():
        told[name] = told[name] | value if isinstance(value, dict) else value
    record.write_text(json.dumps(told))
    with pytest.raises(UserError, match=f'expected the {sentence}'):
        load_policy(folder, base=small_run.base)


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('export.json', 'the record of a policy that can act in .*acting/export.json'),
        ('statistics/policy.json', 'normalisation statistics at .*acting/statistics/policy.json'),
        ('tokenizer.json', '.*acting/tokenizer.json'),
    ],
)
def test_a_record_without_a_part_is_not_taken_for_none(small_run, run, tmp_path, name, sentence):
    """Whatever lies beside it: shards would answer, but for another day's data."""
    folder = shutil.copytree(run, tmp_path / 'run')
    (folder / 'acting' / name).unlink()
    with pytest.raises(UserError, match=f'expected {sentence}'):
        load_policy(folder, base=small_run.base)


def test_it_is_there_before_the_first_step_and_written_anew(small_run, tmp_path):
    """A training from before, which has none, has it when it goes on."""
    config = flow_config(small_run.shards) | {'base': str(small_run.base), 'trainable': ('lora',)}
    folder = trainer.train(RunConfig.from_dict(config | {'steps': 0}), tmp_path / 'run').folder
    record = folder.path / 'acting' / 'export.json'
    told = json.loads(record.read_text())
    base = json.loads((small_run.base / 'source.json').read_text())
    assert not folder.steps and told['base']['digest'] == base['digest']
    assert told['acting']['robot']['horizon'] == open_shards(small_run.shards).meta.horizon
    shutil.rmtree(record.parent)
    trainer.train(RunConfig.from_dict(config | {'steps': 1}), folder.path)
    assert json.loads(record.read_text()) == told and folder.steps == [1]
    export_run(folder.path, tmp_path / 'out')
    exported = json.loads((tmp_path / 'out' / 'export.json').read_text())
    assert exported['acting'] == told['acting'] and exported['base'] == told['base']
    for name in ('statistics/data.json', 'statistics/policy.json', 'tokenizer.json'):
        written = [(at / name).read_bytes() for at in (record.parent, tmp_path / 'out')]
        assert written[0] == written[1], name


def test_it_is_written_whole_or_not_at_all(small_run, tmp_path):
    config = RunConfig.from_dict(json.loads(json.dumps(small_run.config())))
    plan = build(config)
    acting_record.keep(plan, plan.base, tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob('*.json')}
    broken = build(RunConfig.from_dict(small_run.config() | {'tokenizer': 'nowhere/words.json'}))
    for place in (tmp_path, tmp_path / 'new'):
        place.mkdir(exist_ok=True)
        with pytest.raises(UserError, match='nowhere/words.json'):
            acting_record.keep(broken, broken.base, place)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*.json')} == kept and len(kept) == 4
    assert RunFolder(tmp_path / 'new').path.is_dir() and not list((tmp_path / 'new').iterdir())


def test_the_script_serves_a_run_around_the_base_that_it_names(small_run, run, monkeypatch):
    words = ['serve.py', f'--policy={run}', f'--base={small_run.base}', '--check', '--card=l4']
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit, match='0'):
        serve.main()
    seen = recorded(small_run, first_episode(small_run))[0]
    want = load_policy(run, base=small_run.base).infer(seen)
    assert same(serve.load(serve.parse()).infer(seen), want)


def test_an_export_of_all_weights_is_told_by_what_acts(small_run, tmp_path, unread):
    export_run(small_run.flow, tmp_path / 'out', merge=True)
    told = sj.forecast_serving(tmp_path / 'out', card='l4')
    assert told.fits and 'what was learned beside the base is left out' not in told.notes
