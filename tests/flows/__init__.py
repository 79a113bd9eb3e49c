"""Proofs of the flow and the command."""
