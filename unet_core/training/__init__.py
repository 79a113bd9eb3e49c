"""The training loop, what it keeps, and how a model is selected."""
