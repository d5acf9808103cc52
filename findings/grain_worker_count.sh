#!/usr/bin/env bash
# grain 0.2.18: the state of a `mp_prefetch` iterator is taken by an iterator with another number of workers.
#
# One expects: batches after `set_state` that go on where the state was taken, or an error that names the two counts.
# What happens: `set_state` says nothing. Batches are dealt to the workers in turn and the state holds each worker's place,
#   so the first worker of four goes on at another batch than the first of two. If the new iterator's own state was asked for
#   before (as whoever compares the two does), it goes on so: some batches come again, some never. If it was not, the first
#   batch is as wrong, and the workers without a place in the state end the iteration with an IndexError about a list.
# Whom it hurts: who takes a training run up again with more workers, say on a machine with more cores.
#
# Usage: PYTHON=python3.12 findings/grain_worker_count.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install grain==0.2.18 numpy==2.4.2

cat > "$DIR/show.py" <<'END'
import platform
import sys
from importlib.metadata import version

import absl.logging
import grain

absl.logging.set_verbosity('error')
TAKEN, NEXT = 5, 11


def batches(workers):
    """An endless iterator over the batches [0 1], [2 3], … [62 63], [0 1], …"""
    data = grain.MapDataset.source(range(64)).batch(2).repeat().to_iter_dataset()
    return iter(data.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers)))


def names(iterator, count):
    return [int(next(iterator)[0]) // 2 for _ in range(count)]


def resumed(before, after, asked):
    """(batches of `before` workers, those that `after` workers give from the state after them)."""
    first, second = batches(before), batches(after)
    seen = names(first, TAKEN)
    if asked:
        second.get_state()
    second.set_state(first.get_state())  # no error
    return seen, names(second, NEXT if asked else 1)


if __name__ == '__main__':
    print(f'python {platform.python_version()}, grain {version("grain")}, numpy {version("numpy")}')
    goes_on = {}
    for workers in ((2, 2, True), (2, 2, False), (2, 4, True), (2, 4, False)):
        seen, rest = resumed(*workers)
        goes_on[workers] = seen + rest == list(range(len(seen + rest)))
        print('{} -> {} workers, own state asked for first: {}'.format(*workers))
        print(f'  {seen}, then {rest}')
        if not goes_on[workers]:
            missing = sorted(set(range(max(seen + rest))) - set(seen + rest))
            print(f'  WRONG: came again {sorted(set(seen) & set(rest))}, left out so far {missing}')
    still = goes_on == {(2, 2, True): True, (2, 2, False): True, (2, 4, True): False, (2, 4, False): False}
    sys.exit(None if still else f'behaves otherwise now: {goes_on}')
END
"$DIR/env/bin/python" "$DIR/show.py"
