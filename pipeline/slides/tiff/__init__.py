"""TIFF reader: directories, pyramids and tiles."""
