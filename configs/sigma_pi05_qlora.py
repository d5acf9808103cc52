"""Sigma around the full-size pi0.5 with an NF4 base (QLoRA): as configs/sigma_pi05.py, in 3 GiB
less.

python train.py --config=configs/sigma_pi05_qlora.py --workdir=runs/sigma_qlora
"""

from ml_collections import ConfigDict

from configs import sigma_pi05


def get_config() -> ConfigDict:
    """The base without its action expert takes 2.74 GiB; data, batch and all that learns are those
    of sigma_pi05.
    """
    c = sigma_pi05.get_config()
    # Gemma's matrices (defaults.py names them) in four bits; the others in bfloat16
    c.quant.kind = 'nf4'
    c.quant.tile = 64  # one scale for 64 inputs, in bfloat16: 4.25 bits a weight (QLoRA)
    # c.quant.int8 = (r'.*/input_embedding', r'.*/encoderblock/.*/kernel')  # token table and SigLIP
    # too: 1.87 GiB
    return c
