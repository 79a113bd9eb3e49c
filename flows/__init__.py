"""Orchestration and the command line: batches of slides as Prefect flows."""
