"""Annotated images and masks for training and evaluation."""
