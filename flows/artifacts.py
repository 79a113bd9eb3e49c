"""Show Markdown as a Prefect artifact. A result is complete whether or not the server accepts its artifact."""

from __future__ import annotations

from httpx import HTTPError  # what Prefect lets through when its server cannot be reached
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException


def show_artifact(key: str, name: str, markdown: str) -> None:
    """Create an artifact under a key, or log why it was not created."""
    try:
        create_markdown_artifact(markdown, key=key, description=name)
    except (PrefectException, HTTPError) as error:
        get_run_logger().warning("no artifact for %s: %s", name, error)
