"""Architectures, and what they cost and show."""
