#!python
"""Start the `overtile` command with its own packages.

This file is installed as the script `overtile`. Modules that are called `flows`, `pipeline` or `unet_core` like the
packages of this command may lie in a folder of PYTHONPATH, which Python searches before the installed packages. Such
folders are left out here and for all child processes (Prefect, dask workers). A checkout of overtile stays.
"""

import os
import sys
from importlib.machinery import PathFinder

PACKAGES = ("flows", "pipeline", "unet_core")


def is_foreign(folder: str) -> bool:
    """Whether a folder or zip file has a module called like a package of overtile, and is no checkout of overtile."""
    specs = [PathFinder.find_spec(name, [folder]) for name in PACKAGES]
    is_checkout = all(spec is not None and spec.loader and spec.submodule_search_locations for spec in specs)
    return not is_checkout and any(spec is not None and spec.loader for spec in specs)


def leave_out_foreign_modules() -> None:
    """Remove foreign folders from the search path of this process and of those that it starts."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this script
    os.environ["PYTHONSAFEPATH"] = "1"  # a child process does not search the working directory
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    foreign = {os.path.abspath(entry) for entry in entries if is_foreign(os.path.abspath(entry))}
    if foreign:
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if os.path.abspath(entry) not in foreign)
        sys.path[:] = [entry for entry in sys.path if entry not in foreign]


if __name__ == "__main__":
    leave_out_foreign_modules()
    from flows.cli.main import main

    main()
