"""Checks that a file is what it claims to be, before anything is decoded."""
