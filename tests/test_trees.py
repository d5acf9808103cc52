"""Paths, masks and digests of parameter trees."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.types import Carry

TREE = {'a': {'w': np.zeros((2, 3)), 'bias': np.ones(3)}, 'b': {'w': np.arange(4.0)}}


def test_flatten_and_unflatten_are_inverse_and_name_struct_fields():
    flat = trees.flatten(TREE)
    assert list(flat) == ['a/bias', 'a/w', 'b/w']
    assert trees.flatten(trees.unflatten(flat)).keys() == flat.keys()
    assert trees.unflatten(flat)['b']['w'] is TREE['b']['w']
    assert list(trees.flatten({'carry': Carry(memory=1, tau=(2, 3))})) == [
        'carry/memory',
        'carry/tau/0',
        'carry/tau/1',
    ]
    assert trees.map_with_path(lambda path, x: (path, x.ndim), TREE)['a']['w'] == ('a/w', 2)
    assert trees.count(TREE) == 13


def test_select_matches_whole_paths():
    assert trees.select(TREE, ['.*/w']) == {'a': {'w': True, 'bias': False}, 'b': {'w': True}}
    assert trees.select(TREE, ['a/.*', 'b/w']) == {'a': {'w': True, 'bias': True}, 'b': {'w': True}}
    assert trees.select(TREE, []) == {'a': {'w': False, 'bias': False}, 'b': {'w': False}}


def test_a_pattern_that_fits_the_beginning_of_a_path_does_not_select_it():
    tree = {'q': {'w': 1, 'wide': 2}, 'q_1': {'w': 3}}
    assert trees.select(tree, ['q/w']) == {'q': {'w': True, 'wide': False}, 'q_1': {'w': False}}
    assert trees.select(tree, ['q_1|q.*/w', 'q_1/.']) == {
        'q': {'w': True, 'wide': False},
        'q_1': {'w': True},
    }


@pytest.mark.parametrize('pattern', ['w', 'a/b.*x', 'a/bia'])
def test_a_pattern_that_matches_nothing_names_the_closest_path(pattern):
    with pytest.raises(
        UserError, match='got pattern .*, which matches none of 3; closest: .*(w|bias)'
    ) as caught:
        trees.select(TREE, ['b/w', pattern])
    assert repr(pattern) in str(caught.value)


def test_a_pattern_that_is_no_expression_is_a_user_error():
    with pytest.raises(UserError, match=r"expected a regular expression, got pattern '\(a'"):
        trees.select(TREE, ['(a'])


def test_closest_path():
    assert trees.closest('a/wait', ['a/bias', 'a/w', 'zzz']) == 'a/w'
    assert trees.closest('a', []) == ''


def test_check_same_lists_every_difference():
    other = {'a': {'w': np.zeros((3, 2))}, 'b': {'w': np.arange(4.0)}, 'c': np.zeros(1)}
    with pytest.raises(UserError) as caught:
        trees.check_same(TREE, other, 'the file')
    text = str(caught.value)
    assert text.startswith('the file: expected the leaves of the model, got 3 differences: ')
    for part in (
        'missing a/bias (3,)',
        'unexpected c (1,)',
        'a/w: expected shape (2, 3), got (3, 2)',
    ):
        assert part in text
    assert trees.check_same(TREE, TREE, 'the same') is None


def test_digest_tells_paths_dtypes_shapes_and_bits_apart():
    def one(x):
        return trees.digest({'w': x})

    zeros = np.zeros((2, 3), np.float32)
    variants = [
        zeros,
        zeros.T,
        zeros.reshape(6),
        zeros.astype(np.int32),
        -zeros,
        zeros.astype(ml_dtypes.bfloat16),
        zeros[:0],
        np.float32(0),
    ]
    assert len({one(x) for x in variants} | {trees.digest({'v': zeros})}) == len(variants) + 1
    assert one(zeros) == one(jnp.zeros((2, 3))) == one(np.zeros((3, 2), np.float32).T)
    order = trees.digest({'a': zeros, 'b': zeros + 1})
    assert order == trees.digest({'b': zeros + 1, 'a': zeros})
