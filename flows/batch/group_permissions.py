"""Share OUT between several Unix users (``outputs.group_writable``).

The setgid bit of the folder passes its group on to everything created in it, and the umask of the run keeps the
group's permissions. So no file is changed after it was written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.batch.batch import BatchRequest
from pipeline.errors import ConfigError

GROUP = stat.S_IRWXG
SHARED = stat.S_ISGID | GROUP


@contextmanager
def shared_with_group(request: BatchRequest) -> Iterator[None]:
    """Make files written in the context, by this process and its children, writable by the group of OUT if configured.

    Raises:
        ConfigError: OUT belongs to another user and is not set up for its group.
    """
    if not request.config.outputs.group_writable:
        yield
        return
    _share(request.out)
    before = os.umask(0)
    os.umask(before & ~GROUP)
    try:
        yield
    finally:
        os.umask(before)


def _share(out: Path) -> None:
    problem = ""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if out.stat().st_mode & SHARED != SHARED:
            out.chmod(stat.S_IMODE(out.stat().st_mode) | SHARED)
    except OSError as error:
        problem = f" ({error.strerror})"
    if (
        problem or out.stat().st_mode & SHARED != SHARED
    ):  # the system drops the bit for a group of which the user is no member
        raise ConfigError(
            f"outputs.group_writable: expected {out} to be setgid and group-writable, and cannot change it"
            f"{problem}. Its owner runs: chgrp GROUP {out}; chmod g+rwxs {out}"
        )
