"""What a run tells the world: lines, progress, JSONL, metrics, pictures."""
