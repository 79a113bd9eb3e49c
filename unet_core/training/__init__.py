"""Training, its outputs and model selection."""
