"""Who may import whom: reads every import of sigma_jax and holds the direction of dependencies
(CONTRIBUTING.md).
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'sigma_jax'

# A module imports from its own row and from rows above, never from below. A folder's name stands
# for its modules.
ROWS = (
    ('__init__', 'errors', 'files', 'hub', 'settings', 'data.loader.workers'),
    ('types', 'trees'),
    ('processing',),
    ('backbones.prompts', 'backbones.pi05_prompt'),
    ('data',),
    ('nn', 'xla'),
    ('backbones',),
    ('sigma', 'ablations.stacked'),
    ('objectives',),
    ('convert',),
    ('policies',),
    ('training',),
    ('ablations',),
    ('evaluation',),
    ('api',),
    ('cli', 'sim'),
)
# Pure functions of arrays: no files, no clock, no printing.
PURE: tuple[str, ...] = ('types', 'trees', 'nn', 'sigma', 'backbones', 'objectives')
PURE += ('ablations.stacked', 'training.step', 'training.optimizer')
PURE += ('evaluation.metrics', 'evaluation.compare.intervals', 'evaluation.compare.contrasts')
PURE += ('evaluation.stress.perturb', 'evaluation.cost.flops')
EFFECTS = {
    'io',
    'json',
    'logging',
    'os',
    'pathlib',
    'random',
    'shutil',
    'subprocess',
    'sys',
    'tempfile',
    'time',
}
ACCELERATED = {'flax', 'jax', 'optax', 'orbax'}
INTERFACE = {'absl', 'argparse', 'ml_collections', 'rich'}
SPEAKS = ('cli', 'sim.__main__')


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Syntax tree of every module, by its name without `sigma_jax.`."""
    files = {
        file.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.'): file
        for file in PACKAGE.rglob('*.py')
    }
    return {
        name.removesuffix('.__init__'): ast.parse(file.read_text()) for name, file in files.items()
    }


@functools.cache
def imports(name: str) -> frozenset[str]:
    """What a module imports anywhere in it: modules of ours as '.name', others by their first
    part. What the front door imports for type checkers alone is left out.
    """
    found = set()
    tree = trees()[name]
    unread = [n for n in tree.body if name == '__init__' and _for_types(n)]
    left_out = {node for block in unread for node in ast.walk(block)}
    for node in (node for node in ast.walk(tree) if node not in left_out):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name}: write imports in full'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return frozenset(
        _ours(path) if path.startswith('sigma_jax') else path.split('.')[0] for path in found
    )


def _for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'


def _ours(path: str) -> str:
    inner = path.removeprefix('sigma_jax').removeprefix('.')
    while inner and inner not in trees():
        inner = inner.rpartition('.')[0]
    return '.' + (inner or '__init__')


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of `places` or lies in one of them."""
    return any(name == place or name.startswith(f'{place}.') for place in places)


def row(name: str) -> int:
    """The module's row; the prompts of `backbones`, which data are read with, have one of their
    own.
    """
    rows = [n for n, places in enumerate(ROWS) if within(name, places)]
    assert rows, (
        f'sigma_jax/{name.replace(".", "/")}.py is in no row: give it one in '
        'tests/test_architecture.py'
    )
    return rows[0]


def reached(name: str) -> set[str]:
    """All modules of ours that importing `name` loads, itself included."""
    seen, todo = set(), [name]
    while todo:
        if (here := todo.pop()) not in seen:
            seen.add(here)
            todo += [path[1:] for path in imports(here) if path.startswith('.')]
    return seen


def calls(name: str) -> set[str]:
    """Names of plain functions that a module calls."""
    return {
        n.func.id
        for n in ast.walk(trees()[name])
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }


@pytest.mark.parametrize('name', sorted(trees()))
def test_dependencies_point_one_way(name):
    upward = {path for path in imports(name) if path.startswith('.') and row(path[1:]) > row(name)}
    assert not upward, f'{name} (row {row(name)}) imports from rows below it'


def test_no_module_reaches_itself():
    circles = {
        name
        for name in trees()
        if any(name in reached(p[1:]) for p in imports(name) if p.startswith('.'))
    }
    assert circles <= {'__init__'}


def test_backbones_and_sigma_do_not_know_each_other():
    backbones = [name for name in trees() if within(name, ('backbones',))]
    assert backbones and not any(within(seen, ('sigma',)) for n in backbones for seen in reached(n))
    sigma = [name for name in trees() if within(name, ('sigma',))]
    known = {seen for name in sigma for seen in reached(name) if within(seen, ('backbones',))}
    assert known == {'backbones.base', 'backbones.names'}  # what base.py itself is made of


def test_sigma_asks_for_no_particular_backbone():
    known = {path for path in imports('sigma.model') if path.startswith('.backbones')}
    assert known == {'.backbones.base'}


def test_only_backbones_know_a_particular_backbone():
    """Others take a spec: from a name, a config or a checkpoint (`backbones.kinds`)."""
    neutral = {f'backbones.{name}' for name in ('base', 'names', 'kinds', 'prompts')}
    particular = {n for n in trees() if within(n, ('backbones',))} - neutral - {'backbones'}
    assert particular > {'backbones.pi05', 'backbones.gemma', 'backbones.pi05_prompt'}
    for name in trees():
        if not within(name, ('backbones',)):
            assert not {path[1:] for path in imports(name)} & particular, name


def test_losses_know_neither_sigma_nor_flax():
    assert not imports('sigma.losses') & {'.sigma.model', 'flax'}
    assert 'sigma.model' not in reached('sigma.losses')


def test_the_data_path_loads_no_jax():
    for name in trees():
        if within(name, ('data',)):
            loaded = {path for seen in reached(name) for path in imports(seen)}
            assert not loaded & ACCELERATED, f'{name}: loader processes would start a GPU client'


def test_pure_modules_touch_nothing_outside():
    pure = [name for name in trees() if within(name, PURE)]
    assert len(pure) > 20
    for name in pure:
        assert not imports(name) & EFFECTS, name
        assert not calls(name) & {'print', 'open', 'input'}, name


def test_only_the_top_speaks_to_the_user():
    for name in trees():
        allowed = INTERFACE if within(name, SPEAKS) else set()
        if name == 'data.loader.loader':
            # grain's worker processes read absl's flags, also where a program uses none
            allowed = {'absl'}
        assert imports(name) & INTERFACE <= allowed, name
        assert 'print' not in calls(name) or within(name, SPEAKS), name


def test_config_dicts_stay_at_the_edge():
    users = {name for name in trees() if 'ml_collections' in imports(name)}
    assert users == {'cli.command'}


def test_only_the_simulator_knows_mujoco_and_nothing_knows_the_simulator():
    assert {name for name in trees() if 'mujoco' in imports(name)} == {'sim.engine'}
    assert not {
        name
        for name in trees()
        if any(within(p[1:], ('sim',)) for p in imports(name)) and not within(name, ('sim',))
    }


def test_torch_is_imported_for_pt_shards_only():
    users = {
        name
        for name in trees()
        if imports(name) & {'torch', 'transformers', 'tensorflow', 'lerobot'}
    }
    assert users <= {'data.pt.shards'}  # inside one function, for the paper's own container
    assert imports('data.pt.shards') & {'torch', 'transformers', 'tensorflow', 'lerobot'} == {
        'torch'
    }
