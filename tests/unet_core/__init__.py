"""Proofs of ``unet_core``."""
