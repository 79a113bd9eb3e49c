"""Tissue and quality control on arrays at low resolution."""
