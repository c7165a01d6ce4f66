"""Benches of the trainer: its steps, its saves, its data."""
