"""Build the built-in models again from public data."""
