"""The network: specification, geometry, weights and training. Knows nothing of slides, zarr, dask or Prefect."""
