"""Pictures in memory: contrast, drawing, overview layout."""
