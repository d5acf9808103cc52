"""`import sigma_jax as sj`: light until a name is used, and complete for people and for tools."""

import ast
import dataclasses
import inspect
import json
import pathlib
import re
import subprocess
import sys
import types

import pytest

import sigma_jax as sj

ROOT = pathlib.Path(__file__).parents[1]
DOOR = 'sigma_jax/__init__.py'
NAMESPACES = ('backbones', 'losses', 'sigma', 'types')


def run(code: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own."""
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def for_type_checkers(file: str = DOOR) -> dict[str, str]:
    """{name: full path} of what a file imports where only type checkers read."""
    tree = ast.parse((ROOT / file).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    assert ast.unparse(block.test) == 'TYPE_CHECKING'
    return {
        alias.asname or alias.name: f'{node.module}.{alias.name}'
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_import_alone_loads_no_jax_and_none_of_our_modules():
    code = (
        'import json, sys; before = set(sys.modules); import sigma_jax as sj; dir(sj)\n'
        'print(json.dumps(sorted(set(sys.modules) - before)))'
    )
    loaded = json.loads(run(code).stdout)
    assert 'sigma_jax' in loaded
    heavy = {'jax', 'flax', 'numpy', 'orbax', 'absl', 'rich', 'ml_collections'}
    assert not heavy & {name.partition('.')[0] for name in loaded}
    assert [name for name in loaded if name.startswith('sigma_jax.')] == []


def test_opening_data_loads_no_jax():
    code = 'import sys; import sigma_jax as sj; sj.open_shards; print("jax" in sys.modules)'
    assert run(code).stdout.strip() == 'False'


def test_every_public_name_is_there_and_type_checkers_see_the_same():
    seen = for_type_checkers()
    assert set(seen) == set(sj.__all__) and sorted(sj.__all__) == list(sj.__all__)
    assert set(dir(sj)) == {*sj.__all__, '__version__'}
    for name, path in seen.items():
        module, _, inner = path.rpartition('.')
        found = getattr(sj, name)
        if isinstance(found, types.ModuleType):
            assert found.__name__ == path
        else:
            assert (found.__module__, found.__qualname__) == (module, inner), name


def test_every_public_name_says_what_it_is():
    assert [name for name in sj.__all__ if not (getattr(sj, name).__doc__ or '').strip()] == []


def dataclass_types() -> list[type]:
    """Public dataclasses, and those of a `RunConfig`'s sections."""
    public = [getattr(sj, name) for name in sj.__all__]
    sections = [type(field.default) for field in dataclasses.fields(sj.RunConfig)]
    return [t for t in public + sections if isinstance(t, type) and dataclasses.is_dataclass(t)]


def test_every_public_dataclass_describes_its_fields():
    """In `Attributes`, all of them and no others."""
    assert len(dataclass_types()) > 20
    for kind in dataclass_types():
        section = re.search(r'^Attributes:\n((?:  .*\n?)+)', inspect.getdoc(kind) or '', re.M)
        described = re.findall(r'^  (\w+):', section[1], re.M) if section else []
        assert described == [field.name for field in dataclasses.fields(kind)], kind


def on_pages() -> set[str]:
    """What the pages of the API show: names, and modules with all that is public in them."""
    pages = (ROOT / 'docs' / 'api').glob('*.md')
    return {path for page in pages for path in re.findall(r'^::: (\S+)', page.read_text(), re.M)}


def test_the_pages_of_the_api_cover_every_public_name():
    shown = on_pages()
    for name, path in for_type_checkers().items():
        if name not in NAMESPACES:
            assert path in shown, name


@pytest.mark.parametrize('name', NAMESPACES)
def test_a_page_of_the_api_shows_every_name_of_a_namespace(name):
    shown, namespace = on_pages(), getattr(sj, name)
    for inner in namespace.__all__:
        found = getattr(namespace, inner)
        module = isinstance(found, types.ModuleType)
        home = found.__name__ if module else found.__module__
        assert home in shown or (not module and f'{home}.{inner}' in shown), inner


@pytest.mark.parametrize('name', NAMESPACES)
def test_a_namespace_names_what_is_there_and_nothing_else(name):
    namespace = getattr(sj, name)
    names = namespace.__all__
    assert names and len(set(names)) == len(names) and dir(namespace) == sorted(names)
    assert [inner for inner in names if not (getattr(namespace, inner).__doc__ or '').strip()] == []
    with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
        _ = namespace.nowhere


@pytest.mark.parametrize('name', ['backbones', 'sigma'])
def test_a_lazy_namespace_gives_what_type_checkers_see(name):
    """A module beside another thing of the same name would win once it is imported."""
    namespace, folder = getattr(sj, name), ROOT / 'sigma_jax' / name
    seen = for_type_checkers(f'sigma_jax/{name}/__init__.py')
    assert set(seen) == set(namespace.__all__)
    modules = {file.stem for file in folder.glob('*.py')}
    for inner, path in seen.items():
        found = getattr(namespace, inner)
        assert isinstance(found, types.ModuleType) == (inner in modules)
        if inner in modules:
            assert found.__name__ == path
        else:
            assert f'{found.__module__}.{found.__qualname__}' == path


def test_a_namespace_loads_nothing_until_a_name_of_it_is_used():
    code = (
        'import sys; import sigma_jax as sj; dir(sj.sigma), dir(sj.backbones)\n'
        'print("jax" in sys.modules); sj.backbones.pi05, sj.sigma.model, sj.sigma.Sigma'
    )
    assert run(code).stdout.strip() == 'False'


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sigma_jax' has no attribute 'trian'"):
        _ = sj.trian


# an installation without extras has none of these
EXTRAS = 'websockets', 'prometheus_client', 'grpc', 'gymnasium', 'mujoco'
PLAIN = f'import sys; sys.modules |= dict.fromkeys({EXTRAS!r}); '


@pytest.mark.parametrize('script', ['convert_weights', 'prepare_data', 'train', 'evaluate'])
def test_only_the_server_needs_what_serving_does(script):
    found = run(f'{PLAIN}import {script}')
    assert found.returncode == 0, found.stderr[-400:]


@pytest.mark.parametrize('argument', ['--help', '--policy=runs/base'])
def test_the_server_says_what_it_needs(argument):
    found = run(f'{PLAIN}import serve; sys.argv = ["serve.py", {argument!r}]; serve.main()')
    assert found.returncode == 2 and 'Traceback' not in found.stderr
    assert "; run `pip install 'sigma_jax[serve]'`" in found.stderr
