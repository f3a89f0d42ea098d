"""The training road: model, engine, loop, checkpoints. Knows nothing of who launched it."""
