"""Score methods on annotated images."""
