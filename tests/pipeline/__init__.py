"""Proofs of ``pipeline``."""
