"""What LeRobot's processors and openpi's transforms make of one frame; run inside their own
installation.

    python make_reference.py lerobot OUT [--mode QUANTILES] [--relative]
    python make_reference.py openpi OUT [--mode mean_std]

Writes OUT/reference.npz, and for LeRobot the files that its `save_pretrained` puts beside the
weights. README.md has the versions and commands behind the stored ones. Needs numpy, tokenizers and
one of the two libraries.
"""

import argparse
import json
import pathlib
import types
from typing import Any

import numpy as np
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[3]
CAMERAS, SIDE, HORIZON, LENGTH = ('up', 'side'), 28, 4, 48
TASK = ' pick up_the brick\nand <place> it '
JOINTS = (
    'shoulder_pan.pos',
    'shoulder_lift.pos',
    'elbow_flex.pos',
    'wrist_flex.pos',
    'wrist_roll.pos',
    'gripper.pos',
)


def raw_inputs() -> dict[str, np.ndarray]:
    """Two pictures that are not square, a state with entries outside the range, and normalised
    actions.
    """
    rng = np.random.default_rng(7)
    ramp = np.linspace(0, 255, 80)[None, :, None] * np.linspace(0.2, 1, 60)[:, None, None]
    up = np.clip(ramp + rng.normal(0, 20, (60, 80, 3)), 0, 255).astype(np.uint8)
    side = rng.integers(0, 256, (33, 20, 3), dtype=np.uint8)
    state = np.array([12.5, -91.25, 70.0625, 0.1, 5.0, 3.0], np.float32)
    actions = rng.uniform(-1.2, 1.2, (1, HORIZON, 6)).astype(np.float32)
    return {'up': up, 'side': side, 'state': state, 'model_actions': actions}


def statistics() -> dict[str, dict[str, np.ndarray]]:
    """Of six joints in degrees; the last but one of the state never moved."""
    rng, out = np.random.default_rng(3), {}
    for name in ('state', 'actions'):
        values = rng.normal(0, [20, 30, 25, 15, 0 if name == 'state' else 4, 10], (500, 6)) + [
            0,
            -60,
            60,
            20,
            5,
            15,
        ]
        levels = {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}
        columns = {
            'min': values.min(0),
            'max': values.max(0),
            'mean': values.mean(0),
            'std': values.std(0),
        }
        out[name] = columns | {
            key: np.quantile(values, level, axis=0) for key, level in levels.items()
        }
    return out


def small_tokenizer() -> tokenizers.Tokenizer:
    """The project's own small tokenizer, which the ordinary tests have; with a leading bos, as
    Gemma's.
    """
    tokenizer = tokenizers.Tokenizer.from_file(
        str(ROOT / 'assets' / 'tokenizer' / 'tokenizer.json')
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='<bos> $A', special_tokens=[('<bos>', 2)]
    )
    return tokenizer


def run_lerobot(out: pathlib.Path, mode: str, relative: bool) -> dict[str, np.ndarray]:
    """Preprocessor, `_preprocess_images` of the policy, postprocessor."""
    import torch
    import transformers
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy
    from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors

    raw, stats = raw_inputs(), statistics()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer(), pad_token='<pad>', bos_token='<bos>'
    )
    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: fast
    extra = {'use_relative_actions': True, 'action_feature_names': list(JOINTS)} if relative else {}
    config = PI05Config(
        device='cpu',
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        image_resolution=(SIDE, SIDE),
        tokenizer_max_length=200,
        normalization_mapping={
            'VISUAL': NormalizationMode.IDENTITY,
            'STATE': NormalizationMode[mode],
            'ACTION': NormalizationMode[mode],
        },
        input_features={
            **{
                f'observation.images.{name}': PolicyFeature(
                    FeatureType.VISUAL, (3, *raw[name].shape[:2])
                )
                for name in CAMERAS
            },
            'observation.state': PolicyFeature(FeatureType.STATE, (6,)),
        },
        output_features={'action': PolicyFeature(FeatureType.ACTION, (6,))},
        **extra,
    )
    data_stats = {'observation.state': stats['state'], 'action': stats['actions']}
    before, after = make_pi05_pre_post_processors(config, data_stats)
    config._save_pretrained(out)
    before.save_pretrained(out)
    after.save_pretrained(out)
    views = {
        f'observation.images.{name}': torch.from_numpy(raw[name]).permute(2, 0, 1).float() / 255
        for name in CAMERAS
    }
    batch = before({**views, 'observation.state': torch.from_numpy(raw['state']), 'task': TASK})
    stand_in = types.SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)]))
    images, masks = PI05Policy._preprocess_images(stand_in, batch)
    actions = torch.stack([after(step[None]) for step in torch.from_numpy(raw['model_actions'][0])])
    return {
        'images': torch.stack([image[0].permute(1, 2, 0) for image in images]).numpy(),
        'image_mask': torch.stack([mask[0] for mask in masks]).numpy(),
        'state': batch['observation.state'][0].numpy(),
        'prompt': batch['observation.language.tokens'][0].numpy(),
        'prompt_mask': batch['observation.language.attention_mask'][0].numpy(),
        'actions': actions.numpy().reshape(1, HORIZON, 6),
    }


def run_openpi(out: pathlib.Path, mode: str) -> dict[str, np.ndarray]:
    """Normalize, ResizeImages, TokenizePrompt, and the images as `Observation.from_dict` scales
    them; Unnormalize.
    """
    import openpi.models.tokenizer
    import openpi.shared.normalize
    import openpi.transforms

    raw = raw_inputs()
    stats = {
        name: openpi.shared.normalize.NormStats(
            **{k: one[k] for k in ('mean', 'std', 'q01', 'q99')}
        )
        for name, one in statistics().items()
    }
    openpi.shared.normalize.save(out / 'assets' / 'so101', stats)
    tokenizer, inner = object.__new__(openpi.models.tokenizer.PaligemmaTokenizer), small_tokenizer()
    tokenizer._max_len = 200
    tokenizer._tokenizer = types.SimpleNamespace(
        encode=lambda text, add_bos: inner.encode(text).ids
    )
    quantiles = mode != 'mean_std'
    data: dict[str, Any] = {
        'image': {name: raw[name] for name in CAMERAS},
        'state': raw['state'],
        'prompt': TASK,
    }
    for transform in (
        openpi.transforms.Normalize(stats, use_quantiles=quantiles),
        openpi.transforms.ResizeImages(SIDE, SIDE),
        openpi.transforms.TokenizePrompt(tokenizer, discrete_state_input=True),
    ):
        data = transform(data)
    undo = openpi.transforms.Unnormalize(stats, use_quantiles=quantiles)
    back = undo({'state': data['state'], 'actions': raw['model_actions']})
    return {
        'images': np.stack(
            [data['image'][name].astype(np.float32) / 255.0 * 2.0 - 1.0 for name in CAMERAS]
        ),
        'image_mask': np.ones(2, bool),
        'state': data['state'],
        'prompt': data['tokenized_prompt'].astype(np.int64),
        'prompt_mask': data['tokenized_prompt_mask'],
        'actions': back['actions'],
    }


def main() -> None:
    """Runs one library and stores what it computes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('library', choices=('lerobot', 'openpi'))
    parser.add_argument('out', type=pathlib.Path)
    parser.add_argument('--mode', default='QUANTILES')
    parser.add_argument('--relative', action='store_true')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.library == 'lerobot':
        got = run_lerobot(args.out, args.mode, args.relative)
    else:
        got = run_openpi(args.out, args.mode)
    np.savez_compressed(args.out / 'reference.npz', **got)
    (args.out / 'dataset_stats.json').write_text(
        json.dumps({k: {n: x.tolist() for n, x in v.items()} for k, v in statistics().items()})
    )


if __name__ == '__main__':
    main()
