"""Run blocks in this process or on dask workers."""
