"""One OUT for several Unix users (``outputs.group_writable``).

The one decision made here: the folder is what is shared. Its setgid bit hands its group on to all that is made in it,
and the run's umask leaves that group its rights; so no file is touched after it was written, and no writer has to know.
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
    """What is written inside, by this process and those it starts, the group of OUT may change, if that is asked for.

    Raises ConfigError when OUT is somebody else's and not set up for it.
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
    if problem or out.stat().st_mode & SHARED != SHARED:  # the bit is dropped where its group is not one's own
        raise ConfigError(
            f"outputs.group_writable: expected that {out} hands its group on and lets it write, and cannot make it so"
            f"{problem}. Its owner runs: chgrp GROUP {out}; chmod g+rwxs {out}"
        )
