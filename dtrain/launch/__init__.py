"""Takes a plan and starts it somewhere. Decides nothing about training."""
