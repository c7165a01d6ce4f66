"""Tokens: from text to shards on disk, from shards to the micro-batches of any step."""
