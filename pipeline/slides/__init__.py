"""Open a slide of any supported format and read boxes from it."""
