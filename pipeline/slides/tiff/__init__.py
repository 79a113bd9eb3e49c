"""The TIFF reader: directories, pyramids, tiles."""
