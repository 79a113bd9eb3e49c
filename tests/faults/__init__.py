"""Fault injection: system calls that fail, damaged slides and results, kills."""
