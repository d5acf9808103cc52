"""The optimiser's memory of every leaf, cut from the vector in which `optimizer.as_one_vector`
keeps a group's.
"""

import math

import numpy as np

from sigma_jax import trees


def moments(state, which='mu'):
    """{leaf: first or second moment of its clipped gradient} of heads and factors, of one run or of
    stacked rows.
    """
    found = {}
    for path, vector in trees.flatten(state.opt_state).items():
        if path.endswith(f'/{which}'):
            (group,) = [name for name in state.trainable if f'/{name}/' in f'/{path}/']
            leaves, start, rows = trees.flatten({group: state.trainable[group]}), 0, vector.ndim - 1
            for leaf, x in leaves.items():
                size = math.prod(x.shape[rows:])
                found[leaf] = np.asarray(vector[..., start : start + size]).reshape(x.shape)
                start += size
            assert start == vector.shape[-1]
    return found
