"""Stands in the way of pandas, which only tests need: commands run as they do where overtile alone was installed.

Where it is there, pyarrow imports it, half a second a command, to ask of each array whether it is one of pandas'.
"""

raise ModuleNotFoundError("no pandas here, as where overtile alone was installed", name="pandas")
