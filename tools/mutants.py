"""Plants bugs one at a time and says which tests find them: `python tools/mutants.py --jobs=2`,
half an hour at most.

A bug is an edit of a line or two, listed in `tools/mutants/*.toml` with the tests that must fail
for it. Every job has a copy of the working tree; there the edit is made, the tests run and the file
is put back. First the tests run
without any edit: one that fails then shows nothing. Seconds are those of a processor.

Each run is a child of a process that has the libraries in memory, but none of this project's
modules, so that what a child imports is the edited copy; it says from where it did. Exit status 0:
at least 95 % were found.
"""

import argparse
import collections
import compileall
import dataclasses
import importlib
import json
import os
import pathlib
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
LISTS = ROOT / 'tools' / 'mutants'
LIBRARIES = (
    'chex', 'flax.linen', 'grain', 'huggingface_hub', 'optax', 'orbax.checkpoint',
    'pyarrow.parquet', 'rich.console', 'safetensors.numpy', 'scipy.stats', 'tensorflow_datasets',
)  # fmt: skip
SHARE = 0.95  # of all bugs that must be found
AS_IT_IS = 'as it is: '  # before the name of a run without an edit
LONGEST = 300.0  # seconds that the tests of one bug may take


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted bug: `old`, which stands once in `file`, becomes `new`; `left` says why no test
    need find it.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    left: str = ''


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one run of tests: 'found', 'missed' or 'error', by which test or why,
    seconds.
    """

    outcome: str
    said: str
    seconds: float


def read_mutants(folder: pathlib.Path = LISTS) -> list[Mutant]:
    """All listed bugs, in the order of files and entries."""
    entries = [
        entry
        for path in sorted(folder.glob('*.toml'))
        for entry in tomllib.loads(path.read_text())['mutant']
    ]
    return [Mutant(**entry | {'tests': tuple(entry['tests'])}) for entry in entries]


def problems(mutants: list[Mutant], root: pathlib.Path = ROOT) -> list[str]:
    """What keeps the list from being run: names that stand twice, texts that do not stand once,
    tests that are not there.
    """
    names = collections.Counter(mutant.name for mutant in mutants)
    found = [
        f'{name}: expected one mutant of that name, got {n}' for name, n in names.items() if n > 1
    ]
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1 or mutant.old == mutant.new:
            found.append(
                f'{mutant.name}: expected its old text once in {mutant.file}, and another new '
                f'one, got {count}'
            )
        for test in mutant.tests:
            file, *rest = test.split('::')
            text = (root / file).read_text() if (root / file).is_file() else ''
            if not text or (rest and f'def {rest[-1].partition("[")[0]}(' not in text):
                found.append(f'{mutant.name}: expected the test {test}, got none of that name')
        if not mutant.tests:
            found.append(f'{mutant.name}: expected tests, got none')
    return found


def copy_tree(place: pathlib.Path) -> None:
    """The working tree as git knows it, uncommitted changes included."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split('\0')):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    # by content: an edit is seen whatever the clock says
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(place / 'sigma_jax', quiet=2, invalidation_mode=checked)


class First:
    """A plugin of pytest: which test failed first, and how many ran."""

    def __init__(self) -> None:
        self.failed, self.why, self.ran = '', '', 0

    def pytest_runtest_logreport(self, report) -> None:
        """Called for every phase of every test."""
        self.ran += report.when == 'call'
        if report.failed and not self.failed:
            lines = [line for line in str(report.longrepr).splitlines() if line.startswith('E ')]
            self.failed, self.why = report.nodeid, lines[0][1:].strip() if lines else ''


def child(place: pathlib.Path, tests: tuple[str, ...], answer: pathlib.Path, every: bool) -> None:
    """Runs tests in the copy at `place` and writes what happened; never returns."""
    os.setsid()
    os.chdir(place)
    output = os.open(answer.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ['PYTHONPATH'] = str(place)
    sys.path[0] = str(place)
    import pytest

    plugin = First()
    settings = [] if every else ['-x']
    code = pytest.main(
        [*tests, *settings, '-n', '0', '-p', 'no:cacheprovider', '--tb=short'], [plugin]
    )
    own = [name for name in sys.modules if name == 'sigma_jax' or name.startswith('sigma_jax.')]
    foreign = [
        n
        for n in own
        if not str(getattr(sys.modules[n], '__file__', place) or place).startswith(str(place))
    ]
    found = {
        'code': int(code),
        'failed': plugin.failed,
        'why': plugin.why,
        'ran': plugin.ran,
        'foreign': foreign,
    }
    answer.write_text(json.dumps(found))
    os._exit(0)


def judge(answer: pathlib.Path, seconds: float) -> Result:
    """The result that a child has left."""
    try:
        found = json.loads(answer.read_text())
    except (OSError, ValueError):
        return Result(
            'error', f'no answer within {LONGEST:.0f} s; see {answer.with_suffix(".log")}', seconds
        )
    if found['foreign']:
        return Result('error', f'imported {found["foreign"][0]} from elsewhere', seconds)
    if found['code'] == 1 and found['failed']:
        return Result('found', found['failed'], seconds)
    if found['code'] == 0 and found['ran']:
        return Result('missed', '', seconds)
    return Result(
        'error', f'pytest ended with {found["code"]}; see {answer.with_suffix(".log")}', seconds
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A child at work: in which copy, where it answers, since when, and (file, text) to put
    back.
    """

    name: str
    place: pathlib.Path
    answer: pathlib.Path
    started: float
    undo: tuple[pathlib.Path, str] | None


class Pool:
    """`jobs` copies of the tree, a child in each."""

    def __init__(self, folder: pathlib.Path, jobs: int) -> None:
        self.folder = folder
        self.free = [folder / f'copy{n}' for n in range(jobs)]
        self.running: dict[int, Run] = {}
        for place in self.free:
            copy_tree(place)

    def start(self, name: str, tests: tuple[str, ...], mutant: Mutant | None) -> None:
        """Makes the edit of `mutant`, if one is given, and starts its tests."""
        place, answer, undo = self.free.pop(), self.folder / f'{name}.json', None
        if mutant:
            path = place / mutant.file
            undo = path, path.read_text()
            path.write_text(undo[1].replace(mutant.old, mutant.new))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # JAX warns of forks; none of its threads runs yet
            process = os.fork()
        if not process:
            child(place, tests, answer, every=mutant is None)
        self.running[process] = Run(name, place, answer, time.monotonic(), undo)

    def wait(self) -> tuple[str, Result]:
        """The next child that ends, or has taken too long; its file is put back."""
        while True:
            for process, one in list(self.running.items()):
                seconds = time.monotonic() - one.started
                if seconds > LONGEST:
                    os.killpg(process, signal.SIGKILL)
                ended, _, used = os.wait4(process, 0 if seconds > LONGEST else os.WNOHANG)
                if ended:
                    # of a processor: the clock counts other work too
                    seconds = used.ru_utime + used.ru_stime
                    del self.running[process]
                    self.free.append(one.place)
                    if one.undo:
                        one.undo[0].write_text(one.undo[1])
                    return one.name, judge(one.answer, seconds)
            time.sleep(0.05)


def run_all(
    work: list[tuple[str, tuple[str, ...], Mutant | None]], jobs: int, folder: pathlib.Path
) -> dict[str, Result]:
    """Runs every (name, tests, mutant), reporting progress and how long the rest may take."""
    pool, found, started, todo = Pool(folder, jobs), {}, time.monotonic(), list(reversed(work))
    while todo or pool.running:
        while todo and pool.free:
            pool.start(*todo.pop())
        name, result = pool.wait()
        found[name] = result
        rest = (time.monotonic() - started) / len(found) * (len(work) - len(found))
        outcome = (
            'passed' if result.outcome == 'missed' and name.startswith(AS_IT_IS) else result.outcome
        )
        said = f'{len(found)}/{len(work)} {name}: {outcome} {result.said} ({result.seconds:.0f} s)'
        print(f'{said}; about {rest / 60:.0f} min left', file=sys.stderr, flush=True)
    return found


def table(mutants: list[Mutant], results: dict[str, Result]) -> str:
    """Name, what it breaks, outcome, by which test or why not, seconds."""
    lines = ['| mutant | breaks | outcome | by | s |', '|---|---|---|---|---|']
    for mutant in mutants:
        result = results[mutant.name]
        by = (
            f'`{result.said}`'
            if result.outcome == 'found'
            else mutant.left or result.said or ', '.join(mutant.tests)
        )
        lines.append(
            f'| {mutant.name} | {mutant.breaks} | {result.outcome} | {by} | {result.seconds:.0f} |'
        )
    return '\n'.join(lines)


def main() -> int:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only',
        action='append',
        default=[],
        metavar='NAME',
        help='this bug alone; may be repeated',
    )
    parser.add_argument(
        '--jobs', type=int, default=2, help='runs at a time, each with a copy of the tree'
    )
    parser.add_argument(
        '--list', action='store_true', help='print names and what each breaks, run nothing'
    )
    parser.add_argument(
        '--nobaseline', action='store_true', help='do not run the tests without an edit first'
    )
    given = parser.parse_args()
    mutants = read_mutants()
    if unknown := set(given.only) - {mutant.name for mutant in mutants}:
        parser.error(f'expected names as --list prints them, got {sorted(unknown)}')
    mutants = [mutant for mutant in mutants if not given.only or mutant.name in given.only]
    if given.list:
        print('\n'.join(f'{mutant.name:32} {mutant.file:36} {mutant.breaks}' for mutant in mutants))
        return 0
    if said := problems(mutants):
        print('\n'.join(said), file=sys.stderr)
        return 2
    return run(mutants, max(given.jobs, 1), not given.nobaseline)


def run(mutants: list[Mutant], jobs: int, baseline: bool) -> int:
    """The tests as they are, then every mutant; prints the table."""
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'PYTHONDONTWRITEBYTECODE': '1'}
    # by time, a file edited twice within a second could be taken for its older self
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='mutants-'))
    if baseline:
        tests = collections.defaultdict(list)
        for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests):
            tests[test.partition('::')[0]].append(test)
        before = run_all(
            [
                (f'{AS_IT_IS}{file.replace("/", ".")}', tuple(some), None)
                for file, some in tests.items()
            ],
            jobs,
            folder,
        )
        if wrong := [
            f'{name}: {result.said or result.outcome}'
            for name, result in before.items()
            if result.outcome != 'missed'
        ]:
            print('expected the tests to pass as it is, got:', *wrong, sep='\n', file=sys.stderr)
            return 2
    results = run_all([(mutant.name, mutant.tests, mutant) for mutant in mutants], jobs, folder)
    found = sum(result.outcome == 'found' for result in results.values())
    print(table(mutants, results))
    print(f'\n{found} of {len(mutants)} found, {100 * found / len(mutants):.1f} %')
    shutil.rmtree(folder)
    return 0 if found >= SHARE * len(mutants) else 1


if __name__ == '__main__':
    sys.exit(main())
