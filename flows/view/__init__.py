"""Browser viewer: ``overtile view`` serves pages, tiles and tables on the loopback interface."""
