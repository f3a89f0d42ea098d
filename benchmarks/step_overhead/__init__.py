"""dtrain's training step beside bare PyTorch loops and TRL: `python -m benchmarks.step_overhead`."""
