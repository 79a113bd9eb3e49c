"""Hide pandas, which only tests need.

Commands run as where only overtile is installed. Otherwise pyarrow imports it, half a second a command, to check
whether each array is a pandas object.
"""

raise ModuleNotFoundError("pandas is hidden, as where only overtile is installed", name="pandas")
