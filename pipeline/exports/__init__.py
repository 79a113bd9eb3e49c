"""A complete result in other formats."""
