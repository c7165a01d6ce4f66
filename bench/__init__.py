"""Benches: what Rerail costs and how near it comes to the floor. Figures and their making: README.md."""
