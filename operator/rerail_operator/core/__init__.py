"""Pure decisions: what was seen and the time in, what to do out. No clock, no client, no logger."""
