r"""Sigma around the full-size pi0.5 in bfloat16, within 24 GB.

    python convert_weights.py --checkpoint=PI05 --out=checkpoints/pi05
    python prepare_data.py --source=DATASET --out=runs/shards --base=checkpoints/pi05 \
        --config.data.image_size=224 --config.data.max_prompt_len=200 \
        --config.data.max_text_len=48 --config.data.tokenizer=TOKENIZER \
        --config.baselines.tokenizer=TOKENIZER --config.baselines.dtype=bfloat16
    python train.py --config=configs/sigma_pi05.py --workdir=runs/sigma
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The base without its action expert, 5.45 GiB in bfloat16; Sigma's heads (237.6 M) and LoRA
    factors learn.
    """
    c = defaults.get_config()
    c.base = 'checkpoints/pi05'  # a converted pi0.5, the one whose actions lie beside the shards
    c.shards = 'runs/shards'  # windows of 16 actions (paper 4.1), images of 224 px
    # the one pi0.5 was trained with: a hub id, or a path to its files
    c.tokenizer = 'google/paligemma-3b-pt-224'
    c.steps = 5000
    # sequences of 4 windows a step: 32 windows, of which TRAF's hard set and InfoNCE take all
    c.batch_size = 8
    c.checkpoint.every = 500
    c.loader.num_workers = 4  # decoding processes
    c.loader.cache = False  # full-size images of a whole data set do not fit in memory
    c.model.dtype = 'bfloat16'
    c.model.remat = 'save_attention'  # of a layer keep only its input and its attention
    # with these products the same to the last bit as float32, in half the memory
    c.quant.kind = 'bfloat16'
    # products of the heads too; norms, softmax and losses are float32 in any case
    c.sigma.dtype = 'bfloat16'
    # Sigma's sizes are those of configs/defaults.py: at the base's width, 2048, less than 350 M
    # parameters
    c.optimizer.sigma_rate = 2e-4  # peak; 1e-3 is for the tiny base, 20 times narrower
    c.optimizer.lora_rate = 1e-4
    c.optimizer.warmup_steps = 200
    return c
