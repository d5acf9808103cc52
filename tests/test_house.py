"""The structure keeps its limits, and what counts it finds what it says and nothing else."""

import sys

import pytest

from tests import golden

ROOT = golden.DATA.parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import house  # noqa: E402
import house_built  # noqa: E402
import house_counts  # noqa: E402
import house_prose  # noqa: E402
import house_reads  # noqa: E402
import house_tree  # noqa: E402

sys.path.pop(0)
MADE, POLICIES = ['SigmaConfig', 'make_objective'], ['load_policy']


def build(folder, **files):
    """A repository of files; `a__b` is sigma_jax/a/b.py, `tests_x` tests/x.py, `top_x` x.py."""
    for name, text in files.items():
        kind, _, rest = name.partition('_')
        inner = name if name == '__init__' else name.replace('__', '/')
        where = {'top': f'{rest}.py', 'tests': f'tests/{rest}.py'}
        path = folder / where.get(kind, f'sigma_jax/{inner}.py')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house_tree.read(folder)


def lines(places):
    """Where the places are: (file without folder, line)."""
    return [(place.file.rpartition('/')[2], place.line) for place in places]


def one_module(folder, text):
    return build(folder, one=text)


# --- the limits


@pytest.fixture(scope='module')
def repository():
    return house_tree.read(ROOT)


def test_structure_is_at_its_limits(repository):
    message = [
        count.message for count in house.counts(repository, house.read_settings()) if count.message
    ]
    assert not message, '\n'.join(message)


def test_names_that_counts_go_by_are_there(repository):
    settings = house.read_settings()
    assert house.stale(repository, settings) == []
    for group in settings['names']:
        if group != 'pi05_names':
            renamed = settings | {'names': settings['names'] | {group: ['nothing.of_that_name']}}
            assert len(house.stale(repository, renamed)) == 1


def test_targets_are_no_higher_than_limits():
    limits = house.read_settings()['limits']
    assert all(0 <= target <= limit for limit, target in limits.values())


@pytest.mark.parametrize(
    ('now', 'said'),
    [
        (4, 'bring it down:\n  a.py:1: x'),
        (3, ''),
        (2, 'limit: python tools/house.py --lower'),
    ],
)
def test_a_count_may_neither_grow_nor_fall_unrecorded(now, said):
    message = house.Count('doors', 'doors', now, 3, 1, (house_tree.Place('a.py', 1, 'x'),)).message
    assert message.endswith(said) and bool(message) == bool(said)


def test_below_its_target_a_count_is_free(tmp_path):
    path = tmp_path / 'house.toml'
    path.write_text('rooms = [30, 22]\n')
    fallen = house.Count('rooms', 'rooms', 20, 30, 22, ())
    house.lower([fallen], path)
    assert fallen.message and path.read_text() == 'rooms = [22, 22]\n'
    assert not any(house.Count('rooms', 'rooms', now, 22, 22, ()).message for now in (20, 22))
    assert house.Count('rooms', 'rooms', 23, 22, 22, ()).message


def test_lower_records_what_has_fallen_and_nothing_else(tmp_path):
    path = tmp_path / 'house.toml'
    path.write_text('[limits]\ndoors = [5, 1]\ndoors_over = [5, 0]\nmocks = [1, 0]\n')
    found = [house.Count('doors', '', 3, 5, 1, ()), house.Count('mocks', '', 2, 1, 0, ())]
    house.lower(found, path)
    assert path.read_text() == '[limits]\ndoors = [3, 1]\ndoors_over = [5, 0]\nmocks = [1, 0]\n'


def test_table_says_what_grew_and_lists_places_on_request(repository):
    found = house.counts(repository, house.read_settings())
    assert (
        len({count.name for count in found}) == len(found) == len(house.read_settings()['limits'])
    )
    place = house_tree.Place('a.py', 7, 'x')
    grown = house.Count('doors', 'doors', 4, 3, 1, (place,))
    assert 'grown' in house.table([grown], False) and 'a.py:7' not in house.table([grown], False)
    assert '    a.py:7: x' in house.table([grown], True)


# --- the map


def test_first_level_counts_modules_and_folders_with_modules(tmp_path):
    (tmp_path / 'sigma_jax' / '__pycache__').mkdir(parents=True)
    (tmp_path / 'sigma_jax' / 'texts').mkdir()
    found = build(tmp_path, __init__='', a='', b__c='', b__d='', tests_x='')
    assert [place.file for place in house_counts.first_level(found)] == [
        f'sigma_jax/{name}' for name in ('__init__.py', 'a.py', 'b')
    ]


def test_environments_and_hidden_folders_are_no_part_of_it(tmp_path):
    for name in ('.venv', 'own_environment'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'pyvenv.cfg').touch()
        (tmp_path / name / 'x.py').write_text('from unittest import mock')
    assert len(build(tmp_path, a='').everything) == 1


ORDER = [('a', 'b'), ('c',)]


@pytest.mark.parametrize(
    ('files', 'count'),
    [
        ({'a': '', 'b': 'from sigma_jax import a', 'c': 'import sigma_jax.b'}, 0),
        ({'a': 'from sigma_jax import c', 'c': ''}, 1),
        ({'a': 'def f():\n    from sigma_jax.c import x', 'c': ''}, 1),
        ({'a': 'from sigma_jax.c.d import x', 'c__d': ''}, 1),
        ({'a': '', 'd': 'from sigma_jax import a'}, 1),  # in no row
        (
            {'a__x': 'import sigma_jax.b', 'a__y': '', 'b': 'import sigma_jax.a.y'},
            1,
        ),  # rooms that import each other
        ({'a__x': 'import sigma_jax.a.y', 'a__y': ''}, 0),
    ],
)
def test_back_arrows(tmp_path, files, count):
    assert len(house_counts.back_arrows(build(tmp_path, **files), ORDER)) == count


def test_rows_are_read_from_the_test_that_holds_them():
    assert house_counts.rows("X = 1\nROWS = (('a',), ('b', 'c'))\n") == [('a',), ('b', 'c')]
    assert house_counts.rows("ROWS: tuple = (('a',),)\n") == [('a',)]
    with pytest.raises(SystemExit, match='got none'):
        house_counts.rows('ORDER = ()')
    assert len(house_counts.rows((ROOT / house.ARCHITECTURE).read_text())) > 5


def test_circles(tmp_path):
    straight = {'a': 'import sigma_jax.b', 'b': 'from sigma_jax import __version__'}
    found = build(tmp_path / 'straight', __init__='import sigma_jax.a', **straight)
    assert house_counts.circles(found) == []
    around = {'a': 'import sigma_jax.b', 'b': 'from sigma_jax.c import x'}
    found = build(tmp_path / 'around', c='from sigma_jax import a', **around)
    assert [place.file for place in house_counts.circles(found)] == [
        f'sigma_jax/{name}.py' for name in 'abc'
    ]


# --- reads by string key


@pytest.mark.parametrize(
    'text',
    [
        "config['x']",
        "config.get('x', 1)",
        "run.config['log']['every']",  # one read, of one value
        "self.config.get('a', {}).get('b')",
        'config[KEY]',
        "config[f'{x}_y']",
        "config.model['dtype']",
        "dict(config)['x']",
        "(config | more)['x']",
        "read_config(folder)['x']",
        "c = run.config\nc['x']",
        "self.c = config\nself.c.get('x')",
        "a, b = 1, config\nb['x']",
        "if c := run.config:\n    c['x']",
        "def f(config: Mapping):\n    return config['x']",
        "def f(settings: dict[str, Any]):\n    return settings['x']",
        "def f(c: Mapping):\n    return c['x']\nf(config)",
        "def f(c):\n    return c['x']\ndef g(d):\n    f(c=d)\ng(run.config)",
        "class A:\n    def __init__(self, c):\n        self.x = c['x']\nA(run.config)",
        "def f(config):\n    def g():\n        return config['x']",
        "class A:\n    @classmethod\n    def f(cls, config):\n        return config['x']",
        "class A:\n    @classmethod\n    def f(cls, config):\n        cls.x = config['x']",
        'class A:\n    @classmethod\n    def f(cls, config):\n'
        "        if config['x']:\n            return A()\n        return cls()",
    ],
)
def test_a_read_of_config_is_found_whatever_it_is_called(tmp_path, text):
    found = house_reads.reads(one_module(tmp_path, text), [], [])
    assert len(found['config']) == 1 and found['meta'] == []


@pytest.mark.parametrize(
    'text',
    [
        'config.steps',
        "config['x'] = 1",
        'config[0]',
        'config[name]',
        "other['x']",
        "'x' in config",
        "def f(c: list):\n    return c['x']\nf(config)",
        "def f(c):\n    return c['x']\nf(other)",
        "import jax\njax.config['x']",
        "def f(config: LossConfig):\n    return config['x']",
        "class Meta:\n    @classmethod\n    def read(cls, meta):\n        return cls(meta['x'])",
    ],
)
def test_what_is_no_read_is_not_counted(tmp_path, text):
    assert house_reads.reads(one_module(tmp_path, text), [], []) == {'config': [], 'meta': []}


def test_reads_of_meta_are_counted_apart_and_what_comes_out_is_a_value(tmp_path):
    text = "m = read_meta(x)\nm['windows']['train']\nw = run.meta['windows']\nw['train']"
    text += "\nmeta.windows['train']"
    found = house_reads.reads(one_module(tmp_path, text), [], [])
    assert lines(found['meta']) == [('one.py', 2), ('one.py', 3)] and found['config'] == []


def test_reads_are_followed_into_other_modules_and_left_out_where_they_belong(tmp_path):
    files = {
        'a': "def f(c):\n    return c['x']",
        'b__c': "from sigma_jax import a\na.f(run.meta)\nmeta['x']",
    }
    found = build(tmp_path, **files)
    assert lines(house_reads.reads(found, [], [])['meta']) == [('a.py', 2), ('c.py', 3)]
    assert (
        house_reads.reads(found, ['b'], [])['meta']
        == []
        == house_reads.reads(found, [], ['a', 'b.c'])['meta']
    )


# --- what stands in more than one place


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ("config['objective'] == 'sigma'", 1),
        ("'sigma' != run.config.get('objective')", 1),
        ("config.objective in ('sigma', 'other')", 1),
        ("GROUPS[config['objective']]", 1),
        ("kind = config['objective']\nkind == 'sigma'", 1),
        ("x == 'flow_matching'", 1),
        ('config.objective in OF_POLICY', 1),
        ("config.get('objective') not in (*OTHERS, 'sigma')", 1),
        ('config.objective in (FIRST, kinds.SECOND)', 1),
        ('run.objective == kinds.SIGMA', 1),
        ('run.objective in names', 0),
        (
            "match config.objective:\n case 'sigma': pass\n case 'a' | 'b': pass\n case _: pass",
            2,
        ),
        ("arm == 'sigma'", 0),
        ("config['objective']", 0),
        ('run.objective == other.objective', 0),
        ('objective.needs_base_actions', 0),
    ],
)
def test_objective_names(tmp_path, text, count):
    found = one_module(tmp_path, text)
    assert len(house_built.objective_names(found, [])) == count
    assert house_built.objective_names(found, ['one']) == []


PRIMITIVES = {
    'sizes': 'class SigmaConfig: pass',
    'assembly': (
        'from sigma_jax.sizes import SigmaConfig\n'
        'def build(kind): pass\n'
        'def make_objective(): return build(SigmaConfig)\n'  # a primitive made of another: no place
    ),
    'samples': 'def load_policy(): pass\ndef more(): load_policy()\n',  # its own: no place
    'settings': 'from sigma_jax.sizes import SigmaConfig\ndef f(): SigmaConfig()',  # the edge
}


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        (
            'from sigma_jax import assembly as a\ndef f(): a.make_objective(), a.make_objective()',
            1,
        ),
        ('from sigma_jax.assembly import make_objective as m\nclass A:\n    def f(self): m()', 1),
        ('from sigma_jax import assembly, sizes\ndef f(): assembly.build(sizes.SigmaConfig)', 1),
        (
            'from sigma_jax.sizes import SigmaConfig as S\ndef f(x: S): isinstance(x, S)',
            0,
        ),
        ('from elsewhere import make_objective\ndef f(): make_objective()', 0),
        ('from sigma_jax import assembly\ndef f(): assembly.build(int)', 0),
        ('from sigma_jax import samples\ndef f(): samples.load_policy()', 1),
        ('def make_objective(): pass\ndef build(): make_objective()', 1),
    ],
)
def test_assemblies(tmp_path, text, count):
    found = build(tmp_path, one=text, **PRIMITIVES)
    assert len(house_built.assemblies(found, MADE, POLICIES, ['settings'])) == count
    assert house_built.unknown(found, ['SigmaConfig', 'assembly.build', 'gone']) == ['gone']


OPENS = 'from sigma_jax.weights import source\n'
MAKES = 'from sigma_jax import assembly\n'


@pytest.mark.parametrize(
    ('text', 'doors'),
    [
        (OPENS + 'def open_it() -> tuple[x.Base, str]: return source.open_source()', ['open_it']),
        (OPENS + 'def a() -> Base: source.open_source()\ndef b() -> Base: a()', ['a', 'b']),
        (OPENS + 'class Policy:\n    def __init__(self): source.open_source()', ['Policy']),
        (OPENS + MAKES + 'class Run:\n x = source.open_source(), assembly.make_objective()', []),
        (OPENS + 'def measure() -> Report: source.open_source()', []),
        (OPENS + 'def _inner() -> Base: source.open_source()', []),
        (
            OPENS + 'def describe() -> Base: source.open_source()\ndef f() -> int: describe()',
            ['describe'],
        ),
        ('from sigma_jax.other import open_source\ndef f() -> Base: open_source()', []),
    ],
)
def test_doors(tmp_path, text, doors):
    weights = 'def open_source() -> Source: pass'
    found = build(tmp_path, one=text, weights__source=weights, **PRIMITIVES)
    names = ['source.open_source'], ['Base', 'Source'], MADE
    places = house_built.doors(found, *names)
    assert sorted(place.what.split()[0] for place in places) == doors


# --- sizes


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('def f(a, b, /, c, d=1, *rest, e, **more): pass', 4),
        ('class A:\n    def f(self, a, b): pass\n    def __call__(self, a): pass', 2),
        (
            'class A:\n @staticmethod\n def f(a, b): pass\n @classmethod\n def g(cls, a): pass',
            2,
        ),
        (
            'def _f(a): pass\nclass _A:\n def f(self, a): pass\ndef g():\n def h(a, b): pass',
            0,
        ),
    ],
)
def test_positional_parameters_of_public_functions(tmp_path, text, count):
    assert house_counts.positional(one_module(tmp_path, text))[0][0] == count


def test_lengths_run_from_def_to_end_without_docstring_in_package_and_scripts(tmp_path):
    text = '@mark\ndef f():\n    """One."""\n\n    def g():\n        pass\n    return g'
    test = 'def test():\n    a\n    b\n'
    sizes = house_counts.lengths(build(tmp_path, one=text, top_run='def h(): pass', tests_x=test))
    assert [(n, place.what.split()[0]) for n, place in sizes] == [(5, 'f'), (2, 'g'), (1, 'h')]
    largest, above = house.most(sizes, 2)
    assert largest == 5 and lines(above) == [('one.py', 2)]


def test_mocks_are_counted_outside_tests(tmp_path):
    text = 'def f():\n    from unittest import mock\n'
    assert (
        house_counts.mocks(build(tmp_path / 'tested', tests_x=text, one='import unittests')) == []
    )
    assert lines(
        house_counts.mocks(build(tmp_path / 'used', one=text, top_run='import unittest.mock as m'))
    ) == [
        ('one.py', 2),
        ('run.py', 1),
    ]


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('from sigma_jax.backbones import pi05', 1),
        ('from sigma_jax.backbones.pi05 import A\nfrom sigma_jax.backbones.pi05 import B', 1),
        ('from sigma_jax.texts import pi05_prompt', 1),
        ('from sigma_jax.backbones.base import Backbone', 0),
        ('from elsewhere.backbones import pi05', 0),
    ],
)
def test_parts_of_pi05_outside_backbones(tmp_path, text, count):
    rest = {
        'backbones__pi05': '',
        'backbones__base': 'from sigma_jax.backbones import pi05',
        'texts': '',
    }
    found = build(tmp_path, one=text, **rest)
    assert len(house_counts.pi05_parts(found, ['backbones.pi05'], ['pi05_prompt'])) == count


def test_wide_lines_and_lines_of_tests(tmp_path):
    found = build(tmp_path, one=f'{"x" * 100}\n{"x" * 101}\n', tests_x=f'# {"ä" * 99}\n')
    assert lines(house_counts.wide_lines(found)) == [('one.py', 2), ('x.py', 1)]
    assert house_counts.test_lines(found) == (1, 2)


# --- docstrings

ARGS = '"""One.\n\n    Args:\n      a: one\n        more: of it.\n      b: two.\n    """'


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        (f'def f(a, *, b=1):\n    {ARGS}', 0),
        (f'def f(a):\n    {ARGS}', 1),  # b is gone
        (f'def f(a, b, c):\n    {ARGS}', 1),
        ('def f(a):\n    """Of `a`."""', 1),
        ('def f(a): pass', 1),
        ('def f(): pass\ndef _g(a): pass', 0),
        ('def f(_): pass\ndef g(*_, **__): pass', 0),
        (f'def f(*a, **b):\n    {ARGS.replace("a:", "*a:").replace("b:", "**b:")}', 0),
        (f'def f(*a, **b):\n    {ARGS}', 1),
        ('class A:\n    def f(self): pass\n    def g(self, a): pass', 1),
        (f'class A:\n    {ARGS}\n    def __init__(self, a, b): pass', 0),
        (f'class A:\n    {ARGS}\n    def __call__(self, a, b): pass', 1),
        ('class _A:\n    def f(self, a): pass', 0),
    ],
)
def test_functions_whose_args_are_not_their_parameters(tmp_path, text, count):
    assert len(house_prose.undescribed(one_module(tmp_path, text))) == count


GIVES = '"""One.\n\n    Args:\n      a: one.\n\n    Returns:\n      Two.\n    """'
CONTEXT = '@contextlib.contextmanager\ndef f(a)'


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('def f(a) -> int:\n    """Of `a`."""', 1),
        ('def f(a) -> int:\n    """Returns one."""', 1),
        (f'def f(a) -> int:\n    {GIVES}', 0),
        (f'def f(a) -> Iterator[int]:\n    {GIVES.replace("Returns", "Yields")}', 0),
        ('def f(a): pass\ndef g(a) -> None: pass\ndef _h(a) -> int: pass', 0),
        ('def f() -> int:\n    """One."""', 0),  # takes nothing: its first line says it
        (f'{CONTEXT} -> Iterator[None]:\n    """Of `a`."""', 0),
        (f'{CONTEXT} -> Iterator[int]:\n    """Of `a`."""', 1),
        ('def f(a) -> Iterator[None]:\n    """Of `a`."""', 1),
        ('class A:\n    def __init__(self, a) -> None: pass\n    def f(self) -> int: pass', 0),
        ('class A:\n    def __call__(self, a) -> int: pass', 1),
    ],
)
def test_functions_that_do_not_say_what_they_return(tmp_path, text, count):
    assert len(house_prose.unreturned(one_module(tmp_path, text))) == count


SAID = '"""One.\n\n    Raises:\n      UserError: something.\n    """'


@pytest.mark.parametrize(
    ('text', 'count'),
    [
        ('def f():\n    raise UserError("x")', 1),
        (f'def f():\n    {SAID}\n    raise UserError("x")', 0),
        ('def f():\n    """Raises UserError."""\n    raise errors.UserError("x")', 1),
        ('def f():\n    if x:\n        raise UserError("x") from error', 1),
        ('def f():\n    raise ValueError("x")\n    raise', 0),
        ('def f():\n    def g():\n        raise UserError("x")\n    return g', 0),
        ('def f():\n    g()\ndef _g():\n    raise UserError("x")', 0),
        (f'class A:\n    {SAID}\n    def __init__(self):\n        raise UserError("x")', 0),
        ('class A:\n    def f(self):\n        raise UserError("x")', 1),
    ],
)
def test_functions_that_raise_and_do_not_say_so(tmp_path, text, count):
    assert len(house_prose.unraised(one_module(tmp_path, text))) == count
