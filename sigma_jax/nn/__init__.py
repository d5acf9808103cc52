"""Layers that backbones and Sigma share, LoRA beside their matrices, and weights in fewer bytes."""
