"""What only openpi keeps: assets, its own LoRA leaves, settings of its training config."""
