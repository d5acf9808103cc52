"""A pi0.5 of 11 M parameters at 112 pixels, trained from nothing by flow matching: the larger base
of experiments/.
"""

from ml_collections import ConfigDict

from configs import pi05_so101_mix


def get_config() -> ConfigDict:
    """As configs/pi05_so101_mix.py, 13 times as large, on four times as many episodes; minutes on
    one large GPU.
    """
    c = pi05_so101_mix.get_config()
    c.steps = 12000
    c.batch_size = 64
    c.ema = 0.999
    c.checkpoint.every = 2000
    c.checkpoint.keep = 1
    # decoding processes: a step takes less than one process needs for its 128 images
    c.loader.num_workers = 8
    c.loader.cache = False  # each of them would come to keep nearly all windows
    c.model.dtype = 'bfloat16'
    c.optimizer.params_rate = 1e-3
    c.optimizer.warmup_steps = 400
    c.model.vision = ConfigDict(
        {'width': 192, 'depth': 4, 'mlp_dim': 512, 'heads': 6, 'patch': 14, 'image_size': 112}
    )
    c.model.language = ConfigDict(
        {'width': 256, 'depth': 6, 'mlp_dim': 1024, 'heads': 8, 'kv_heads': 1, 'head_dim': 32}
    )
    c.model.expert = ConfigDict(
        {
            'width': 160,
            'depth': 6,
            'mlp_dim': 640,
            'heads': 8,
            'kv_heads': 1,
            'head_dim': 32,
            'adaptive': True,
        }
    )
    return c
