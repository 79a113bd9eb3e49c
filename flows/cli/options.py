"""Options and arguments shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="F", help="YAML configuration file, see configs/segment.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="section.key=value", help="Override one configuration key. Repeatable."),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="HH:MM", help="Stop at this time of day: start no block after it. Default: run to the end."
    ),
]
ResultPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="Results folder, or the folder of one slide in it.", show_default=False)
]
ResultsFolder = Annotated[
    Path, typer.Argument(metavar="OUT", help="Results folder of `overtile segment`.", show_default=False)
]
