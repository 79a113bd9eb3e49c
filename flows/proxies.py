"""Proxies of the environment, without which the servers on this machine are reached."""

from __future__ import annotations

from collections.abc import MutableMapping

LOOPBACK = ("127.0.0.1", "localhost")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables that name a proxy, also in upper case."""
EXCLUDED = ("no_proxy", "NO_PROXY")


def exclude_this_machine(environment: MutableMapping[str, str]) -> None:
    """Exclude this machine from the proxies of an environment.

    A proxy that Prefect's HTTP client cannot use is removed: the client would otherwise not start at all. Desktops set
    ``socks://``, for example, and SOCKS needs a package that is not a dependency.

    Args:
        environment: Variables of this process, and of those that it starts. Changed in place.
    """
    if not proxies_of(environment):
        return
    for name in unusable(environment):
        del environment[name]
    hosts = [one.strip() for name in EXCLUDED for one in environment.get(name, "").split(",")]
    listed = ",".join(dict.fromkeys(one for one in (*hosts, *LOOPBACK) if one))
    environment.update(dict.fromkeys(EXCLUDED, "*" if "*" in hosts else listed))


def proxies_of(environment: MutableMapping[str, str]) -> list[str]:
    """Return the names of the variables that name a proxy."""
    return [name for name in environment if name.lower() in PROXIES and environment[name]]


def unusable(environment: MutableMapping[str, str]) -> list[str]:
    """Return the names of the variables whose proxy Prefect's HTTP client cannot use."""
    return [name for name in proxies_of(environment) if not _is_usable(environment[name])]


def _is_usable(url: str) -> bool:
    from httpx import HTTPTransport, InvalidURL

    try:
        HTTPTransport(proxy=url if "://" in url else f"http://{url}").close()
    except (ValueError, ImportError, InvalidURL):  # an unknown scheme; SOCKS without its package; no URL
        return False
    return True
