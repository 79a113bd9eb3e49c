"""Network architectures, their forward pass, cost and activations."""
