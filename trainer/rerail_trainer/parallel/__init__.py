"""How one model lies over many ranks."""
