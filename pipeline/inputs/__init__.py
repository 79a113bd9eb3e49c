"""What the user hands in: slides, cases tables, regions, masks."""
