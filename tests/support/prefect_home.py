"""Prefect's database as a first run leaves it, so that each server of a test need not create it anew.

Creating the database takes four CPU seconds. It depends on Prefect's release only: it is made once per machine and
user, and copied. `test_prefect_server.py` and `test_faults_security.py` prove the first run of all, without a database.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

CREATE = """
import asyncio
from prefect.server.database import provide_database_interface

asyncio.run(provide_database_interface().create_db())
"""
DATABASE = "prefect.db"


def with_database(home: Path) -> Path:
    """Put Prefect's empty database into its folder ``home``, which is created, and return the folder."""
    home.mkdir(exist_ok=True)
    if not (home / DATABASE).exists():
        shutil.copyfile(_empty_database(), home / DATABASE)
    return home


def _empty_database() -> Path:
    folder = Path(gettempdir()) / f"overtile-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder}: expected a folder of this user, found one of {folder.owner()}. Remove it")
    path = folder / f"prefect-{version('prefect')}.db"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with TemporaryDirectory(dir=folder) as home:
                kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
                quiet = {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
                subprocess.run([sys.executable, "-c", CREATE], env=kept | quiet, check=True, capture_output=True)
                os.replace(Path(home) / DATABASE, path)
    return path
