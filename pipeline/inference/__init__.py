"""Tiles through networks: the predictor, ensembles, the seam check."""
