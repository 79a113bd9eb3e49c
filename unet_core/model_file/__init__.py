"""The model file: weights in safetensors with a typed header."""
