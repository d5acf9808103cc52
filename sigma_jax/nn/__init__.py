"""Layers that backbones and Sigma share, LoRA for their matrices, and weights in fewer bytes."""
