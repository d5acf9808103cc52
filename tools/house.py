"""Counts the repository's structure against limits that may only fall; takes seconds.

    python tools/house.py              the table: what is counted, now, limit, target
    python tools/house.py --verbose    and the places, with file and line
    python tools/house.py --lower      writes what has fallen into house.toml

`house.toml` holds for each count the limit of today and the target, and the names that some counts
go by. What has grown is to be brought down again; what has fallen, to be recorded (a limit falls no
further than its target): `tests/test_house.py` asks for both. How each is counted stands in
`house_counts.py`, `house_built.py`, `house_reads.py` and `house_prose.py`. Exit status 0: all keep
their limits.
"""

import argparse
import dataclasses
import itertools
import pathlib
import re
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import house_built
import house_counts
import house_prose
from house_reads import reads
from house_tree import House, Place, read

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ROOT / 'tools' / 'house.toml'
ARCHITECTURE = 'tests/test_architecture.py'


@dataclasses.dataclass(frozen=True)
class Count:
    """One line of the table: how much there is, its limit and target, and where."""

    name: str
    title: str
    now: int
    limit: int
    target: int
    places: tuple[Place, ...]

    @property
    def lowest(self) -> int:
        """The limit that it allows now: what there is, no less than the target."""
        return min(self.limit, max(self.now, self.target))

    @property
    def message(self) -> str:
        """What is wrong with it, '' for nothing."""
        if self.now > self.limit:
            where = '\n  '.join(str(place) for place in self.places[:20])
            expected = f'expected at most {self.limit} {self.title}'
            return f'{self.name}: {expected}, got {self.now}; bring it down:\n  {where}'
        if self.lowest < self.limit:
            return (
                f'{self.name}: expected {self.limit}, as tools/house.toml has it, got {self.now}; '
                'well done, now lower the limit: python tools/house.py --lower'
            )
        return ''


def read_settings(path: pathlib.Path = SETTINGS) -> dict[str, Any]:
    """house.toml."""
    return tomllib.loads(path.read_text())


def most(sizes: list[tuple[int, Place]], target: int) -> tuple[int, list[Place]]:
    """(the largest, the places above the target)."""
    return max((size for size, _ in sizes), default=0), [
        place for size, place in sizes if size > target
    ]


def counts(house: House, settings: dict[str, Any]) -> list[Count]:
    """All of them, in the order of the table."""
    limits, names = settings['limits'], settings['names']
    order = house_counts.rows((house.root / ARCHITECTURE).read_text())
    tests, package = house_counts.test_lines(house)
    floor = -(-package * settings['tests_percent'] // 100)
    found: list[Count] = []

    def add(name: str, title: str, now: int | None, places: list[Place]) -> None:
        limit, target = limits[name]
        found.append(
            Count(name, title, len(places) if now is None else now, limit, target, tuple(places))
        )

    def add_places(name: str, title: str, count: Callable[..., list[Place]], *given: Any) -> None:
        add(name, title, None, count(house, *given))

    def add_most(name: str, title: str, sizes: list[tuple[int, Place]]) -> None:
        largest, above = most(sizes, limits[name][1])
        add(name, title, largest, above[:1])
        add(f'{name}_over', f'functions over {limits[name][1]} of them', None, above)

    foreign, edge, made = names['foreign'], names['edge'], names['made']
    add_places('first_level', 'entries at the first level of sigma_jax/', house_counts.first_level)
    by_key = reads(house, foreign, edge)
    add('meta_reads', 'reads of meta by string key', None, by_key['meta'])
    add('config_reads', 'reads of config by string key', None, by_key['config'])
    add_places(
        'objective_names', "comparisons of the objective's name", house_built.objective_names, edge
    )
    assembled = made, names['policies'], edge
    add_places('assemblies', 'places that assemble a run', house_built.assemblies, *assembled)
    opened = names['opened']
    add_places('doors', 'doors that load a base', house_built.doors, opened, names['gives'], made)
    add_places(
        'bare_weights',
        'functions that load weights alone',
        house_built.doors,
        *(opened, names['bare'], made),
    )
    add_most(
        'positional', 'positional parameters of a public function', house_counts.positional(house)
    )
    add_most('lines', 'lines of the longest function, no docstring', house_counts.lengths(house))
    add_places('back_arrows', 'imports against the order of rows', house_counts.back_arrows, order)
    add_places('circles', 'modules that reach themselves by imports', house_counts.circles)
    add_places('mocks', 'imports of unittest.mock outside tests', house_counts.mocks)
    own = names['pi05_modules'], names['pi05_names']
    add_places(
        'pi05',
        "modules outside backbones/ that import pi0.5's own parts",
        house_counts.pi05_parts,
        *own,
    )
    add_places('wide', 'lines over 100 columns', house_counts.wide_lines)
    add_places(
        'args', 'public functions whose Args are not their parameters', house_prose.undescribed
    )
    add_places(
        'returns', 'public functions that do not say what they return', house_prose.unreturned
    )
    add_places('raises', 'public functions with an unsaid UserError', house_prose.unraised)
    share = f'{settings["tests_percent"]} % of sigma_jax/ (now {100 * tests // package} %)'
    add('tests', f'lines of tests short of {share}', max(floor - tests, 0), [])
    return found


def stale(house: House, settings: dict[str, Any]) -> list[str]:
    """Names in house.toml that lead nowhere: counts by them would be right by accident."""
    names = settings['names']
    defined = [names[group] for group in ('made', 'policies', 'opened', 'gives', 'bare')]
    gone = house_built.unknown(house, itertools.chain(*defined))
    gone += [
        name
        for name in names['foreign'] + names['edge'] + names['pi05_modules']
        if name not in house.package
    ]
    return [
        f'tools/house.toml: expected {name} in sigma_jax, got none; write its new name'
        for name in gone
    ]


def table(found: list[Count], verbose: bool) -> str:
    """Now, limit and target of each count; its places too where these are asked for."""
    width = max(len(count.title) for count in found)
    lines = [f'{"":{width}}    now  limit  target']
    for count in found:
        mark = '  grown' if count.now > count.limit else ''
        mark = '  fallen' if count.lowest < count.limit else mark
        lines.append(f'{count.title:{width}} {count.now:6} {count.limit:6} {count.target:7}{mark}')
        lines += [f'    {place}' for place in count.places if verbose]
    return '\n'.join(lines)


def lower(found: list[Count], path: pathlib.Path = SETTINGS) -> None:
    """Writes what has fallen below its limit as the new limit."""
    text = path.read_text()
    for count in found:
        old, new = rf'(?m)^({count.name} = \[){count.limit},', rf'\g<1>{count.lowest},'
        text = re.sub(old, new, text)
    path.write_text(text)


def main() -> int:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--verbose', action='store_true', help='list the places')
    parser.add_argument('--lower', action='store_true', help='record what has fallen')
    parser.add_argument(
        '--root', type=pathlib.Path, default=ROOT, help='count another working tree'
    )
    given = parser.parse_args()
    house, settings = read(given.root.resolve()), read_settings()
    found, gone = counts(house, settings), stale(house, settings)
    print(table(found, given.verbose))
    print('\n'.join(gone), file=sys.stderr, end='\n' if gone else '')
    if given.lower:
        lower(found)
        return 1 if gone or any(count.now > count.limit for count in found) else 0
    return 1 if gone or any(count.message for count in found) else 0


if __name__ == '__main__':
    sys.exit(main())
