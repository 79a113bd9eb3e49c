"""Results in a browser: ``overtile view`` serves pages, tiles and tables from this machine to this machine."""
