"""What a run tells about itself: metrics.jsonl always, W&B on request."""
