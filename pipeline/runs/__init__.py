"""Plan a slide and run it from lock to manifest; verify and prune results."""
