"""Training data in, training report out."""
