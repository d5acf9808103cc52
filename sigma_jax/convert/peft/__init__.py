"""LoRA factors as adapters of the PEFT library."""
