"""What a model is worth: held-out loss, multiple choice, sampled text, and votes between two models."""
