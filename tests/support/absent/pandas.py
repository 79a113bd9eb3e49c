"""Hide pandas, which only tests need, so that commands run as where only overtile is installed.

Otherwise pyarrow imports it, half a second a command, to check whether each array is a pandas object.
"""

raise ModuleNotFoundError("no pandas here, as where overtile alone was installed", name="pandas")
