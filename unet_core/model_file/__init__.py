"""Model files: weights in safetensors with a typed header."""
