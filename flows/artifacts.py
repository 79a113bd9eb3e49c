"""What Prefect shows of a finished thing: markdown beside the run.

The one decision made here: it is only shown. What was made is complete whether or not Prefect's server takes it.
"""

from __future__ import annotations

from httpx import HTTPError  # what Prefect lets through when its server cannot be reached
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException


def show_artifact(key: str, name: str, markdown: str) -> None:
    """Put it where Prefect shows it under a key, or say in the run's log why not."""
    try:
        create_markdown_artifact(markdown, key=key, description=name)
    except (PrefectException, HTTPError) as error:
        get_run_logger().warning("no artifact for %s: %s", name, error)
