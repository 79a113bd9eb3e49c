"""The stages of a slide, one module each: ``<verb>_block`` and ``<verb>_slide``."""
