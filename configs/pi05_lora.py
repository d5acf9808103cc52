r"""LoRA on the full-size pi0.5 by its own objective, flow matching: what LeRobot and openpi do,
within 24 GB.

    python convert_weights.py --checkpoint=PI05 --out=checkpoints/pi05
    python prepare_data.py --source=DATASET --out=runs/shards_50 --base=checkpoints/pi05 \
        --nosample --config.data.image_size=224 --config.data.horizon=50 \
        --config.data.max_prompt_len=200 --config.data.max_text_len=48 \
        --config.data.tokenizer=TOKENIZER
    python train.py --config=configs/pi05_lora.py --workdir=runs/pi05_lora
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """3.35 B frozen parameters in bfloat16, 6.25 GiB, beside 6.2 M that learn."""
    c = defaults.get_config()
    c.objective = 'flow_matching'
    c.trainable = ('lora',)
    c.base = 'checkpoints/pi05'  # a converted pi0.5
    c.shards = 'runs/shards_50'  # windows of 50 actions, pi0.5's horizon, and images of 224 px
    # the one pi0.5 was trained with: a hub id, or a path to its files
    c.tokenizer = 'google/paligemma-3b-pt-224'
    c.steps = 5000
    c.batch_size = 8  # windows a step; with `accumulate` more of them take no more memory
    c.sequence_length = 1  # flow matching has no memory to carry
    c.log.every = 20
    c.checkpoint.every = 500
    c.loader.num_workers = 4  # decoding processes
    c.loader.cache = False  # full-size images of a whole data set do not fit in memory
    c.model.dtype = 'bfloat16'
    c.model.remat = 'save_attention'  # of a layer keep only its input and its attention
    c.triton = True  # a run of hours earns back the time to compile
    # with these products the same to the last bit as float32, in half the memory
    c.quant.kind = 'bfloat16'
    # q, k, v and output of language model and action expert (LeRobot); openpi's own also adapts the
    # feed-forward layers
    c.lora.patterns = (r'.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)
    c.optimizer.lora_rate = 1e-4  # peak (ours; openpi: 2.5e-5)
    c.optimizer.warmup_steps = 200
    return c
