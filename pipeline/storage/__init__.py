"""Names on disk, durable writes, the slide store and its lock."""
