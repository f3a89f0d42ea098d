"""GPUs, machines made of them, and what they cost: each figure with its source."""
