"""Cognitive vision workspace against numpy (paper 3.1)."""

import jax
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sigma import vision
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.types import Observation
from tests import numpy_layers as ref

RNG = np.random.default_rng(0)
B, F, D, V, E = 2, 5, 8, 3, 4


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_resampler_is_the_papers_attention_over_valid_tokens():
    module = vision.PerceiverResampler(V, 2 * D, 'float32')
    features, mask = normal(B, F, D), np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]], bool)
    p = ref.random_params(module, features, mask)
    for b in range(B):
        valid = features[b][mask[b]]
        a = ref.softmax(p['query'] @ p['w_q'] @ (valid @ p['w_k']).T / np.sqrt(D))
        v_base = ref.mlp(ref.layer_norm(p['query'] + a @ valid @ p['w_v'], p['norm']), p['ffn'])
        assert ref.close(ref.call(module, p, features, mask)[b], v_base)


def test_resampler_without_any_valid_token_ignores_all_of_them():
    module, mask = vision.PerceiverResampler(V, D, 'float32'), np.zeros((B, F), bool)
    p = ref.random_params(module, normal(B, F, D), mask)
    one, other = (ref.call(module, p, normal(B, F, D), mask) for _ in range(2))
    assert np.array_equal(one, other) and np.isfinite(one).all()


def test_modulator_is_film_behind_two_log_gates():
    module = vision.VisionModulator(0.0, -1.0, 'float32')
    v_base, tau = normal(B, V, D), normal(B, E)
    p = ref.random_params(module, v_base, tau)
    h = ref.gelu(np.exp(p['theta_t']) * tau @ p['w_1'] + p['b_1'])
    gamma, beta = np.split((h @ p['w_2'] + p['b_2'])[:, None], 2, -1)
    v_film = v_base * (1 + gamma) + beta
    expected = v_base + np.exp(p['theta_mod']) * (v_film - v_base)
    assert ref.close(ref.call(module, p, v_base, tau), expected)


def test_modulator_without_telepathy_or_biases_is_the_identity():
    module, v_base, tau = (
        vision.VisionModulator(0.0, -1.0, 'float32'),
        normal(B, V, D),
        normal(B, E),
    )
    p = ref.random_params(module, v_base, tau)
    p |= {'b_1': 0 * p['b_1'], 'b_2': 0 * p['b_2']}  # as they start
    assert np.array_equal(ref.call(module, p, v_base, 0 * tau), v_base)
    assert not np.allclose(ref.call(module, p, v_base, tau), v_base)


def test_projector_state_encoder_and_block():
    features, state, x = normal(B, F, 6), normal(B, 3), normal(B, V, D)
    projector = vision.VisionProjector(D, 'float32')
    p = ref.random_params(projector, features)
    assert ref.close(
        ref.call(projector, p, features), ref.mlp(ref.layer_norm(features, p['norm']), p['mlp'])
    )

    encoder = vision.StateEncoder(2, D, 5, 'float32')
    p = ref.random_params(encoder, state)
    tokens = ref.dense(ref.mlp(state, p['mlp']), p['token_expander']).reshape(B, 2, D)
    assert ref.close(ref.call(encoder, p, state), tokens)

    block = vision.ModulatedVisionBlock(D, 2, 2 * D, 'float32')
    p = ref.random_params(block, x)
    assert ref.close(ref.call(block, p, x), ref.transformer_block(x, p, 2), 1e-4)


def test_patch_embed_reads_squares_of_pixels():
    module, images = (
        vision.PatchEmbed(2, D, 'float32'),
        RNG.integers(0, 256, (B, 2, 4, 6, 3)).astype(np.uint8),
    )
    p = ref.random_params(module, images)
    tokens = ref.call(module, p, images)
    assert tokens.shape == (B, 2 * 6, D)
    # view 1, row 1, column 2 of the 2 x 3 grid
    square = images[:, 1, 2:4, 4:6].reshape(B, -1) / 127.5 - 1
    assert ref.close(tokens[:, 6 + 5], ref.dense(square, p['patch']) + p['position'][1, 5], 1e-4)
    with pytest.raises(UserError, match='expected a divisor of the image size 4 x 6, got 4'):
        vision.PatchEmbed(4, D, 'float32').init(jax.random.key(0), images)


def test_audio_patch_embed_pads_the_tail():
    module, audio = vision.AudioPatchEmbed(4, D, 'float32'), normal(B, 10)
    p = ref.random_params(module, audio)
    tail = np.concatenate([audio[:, 8:], np.zeros((B, 2), np.float32)], 1)
    tokens = ref.call(module, p, audio)
    assert tokens.shape == (B, 3, D)
    assert ref.close(tokens[:, 2], ref.dense(tail, p['patch']) + p['position'][2])


def workspace_and_observation(**inputs):
    config = SigmaConfig(
        d_model=D,
        state_dim=3,
        action_dim=3,
        num_visual=V,
        num_state=2,
        heads=2,
        vision_blocks=1,
        state_hidden=4,
        patch_size=4,
        audio_patch=4,
        use_depth=True,
        use_audio=True,
        action_width=8,
    )
    text, image_mask = np.zeros((B, 2), np.int32), np.array([[1, 1], [1, 0]], bool)
    observation = Observation(
        images=np.zeros((B, 2, 8, 8, 3), np.uint8),
        image_mask=image_mask,
        prompt=text,
        prompt_mask=text > 0,
        text=text,
        text_mask=text > 0,
        state=normal(B, 3),
        **inputs,
    )
    return vision.CognitiveVisionWorkspace(config), observation


def test_depth_and_audio_join_the_features_and_absent_inputs_are_no_tokens():
    depth, audio = normal(B, 2, 8, 8, 1), normal(B, 10)
    module, everything = workspace_and_observation(depth=depth, audio=audio)
    features = normal(B, 4, D)
    p = ref.random_params(module, features, everything, method='perceive')
    assert set(p) == {
        'projector',
        'resampler',
        'state_encoder',
        'depth_patch_embed',
        'audio_patch_embed',
    }
    full, state_tokens = ref.call(module, p, features, everything, method='perceive')

    def moved(**change):
        v_base, states = ref.call(
            module, p, features, everything.replace(**change), method='perceive'
        )
        assert np.array_equal(states, state_tokens)
        return np.abs(v_base - full).max(axis=(1, 2))

    assert (moved(depth=None) > 1e-4).all() and (moved(audio=None) > 1e-4).all()
    absent = depth.copy()
    absent[1, 1] += 7  # a camera that the mask calls absent
    assert (moved(depth=absent) == 0).all()
    absent[0, 1] += 7
    assert moved(depth=absent)[0] > 1e-4


def test_depth_views_may_have_a_mask_of_their_own():
    """One depth camera beside two colour cameras, the second of which is absent."""
    depth = normal(B, 1, 8, 8, 1)
    module, observation = workspace_and_observation(
        depth=depth, depth_mask=np.array([[1], [0]], bool), audio=normal(B, 10)
    )
    features = normal(B, 4, D)
    p = ref.random_params(module, features, observation, method='perceive')
    full, other = (
        ref.call(module, p, features, observation.replace(depth=x), method='perceive')[0]
        for x in (depth, depth + 3)
    )
    assert np.abs(full - other)[0].max() > 1e-4 and np.array_equal(full[1], other[1])


def test_inputs_that_the_config_asks_for_must_be_there_when_parameters_are_made():
    module, observation = workspace_and_observation(audio=normal(B, 10))
    with pytest.raises(UserError, match='expected depth in the first observation, got None'):
        module.init(jax.random.key(0), normal(B, 4, D), observation, method='perceive')


def test_film_gate_leaves_v_base_to_the_blocks():
    module, _ = workspace_and_observation()
    v_base, tau = normal(B, V, D), normal(B, 64)
    p = ref.random_params(module, v_base, tau, 1.0, method='modulate')
    v_mod = vision.VisionModulator(0.0, 0.0, 'float32').apply(
        {'params': p['modulator']}, v_base, tau
    )
    for gate, x in ((1.0, v_mod), (0.0, v_base)):
        tokens = ref.call(module, p, v_base, tau, gate, method='modulate')
        assert ref.close(tokens, ref.transformer_block(np.asarray(x), p['blocks_0'], 2), 1e-4)
