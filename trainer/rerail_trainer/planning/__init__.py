"""What a model will need and how fast it will train, by arithmetic alone. Torch-free."""
