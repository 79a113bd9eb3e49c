"""Batches: which slides are run, and what became of them. Free of Prefect."""
