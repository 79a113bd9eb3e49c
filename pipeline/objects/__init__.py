"""Block-wise components, measurements, polygons and the object table."""
