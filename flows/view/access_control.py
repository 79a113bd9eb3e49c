"""Access control of the viewer: checks token, Host, Origin, path and method of every request.

No part of a request is ever turned into a file path. A URL consists of a secret token and components of a restricted
alphabet without percent escapes. Slides are looked up by generated names, array keys must match one pattern, and a file
is opened only after its resolved location is checked. Another page in the same browser does not know the token; if it
did, its Host or Origin header would still be rejected.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, StoreError

HOST = "127.0.0.1"
ADDRESS = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+/?", re.ASCII)
"""Pattern of every valid path: no escapes and no empty or hidden components, so no parent directory."""
KEY = re.compile(
    r"(?:(?:labels/|labels/objects/|probability/)?zarr\.json"
    r"|(?:labels/objects/|probability/)?\d{1,2}/(?:zarr\.json|c(?:/\d{1,6}){2,3})"
    r"|(?:tissue|quality)/(?:zarr\.json|c(?:/\d{1,6}){2,3}))",
    re.ASCII,
)
"""Pattern of the files in an OME-Zarr written by overtile."""
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", re.ASCII)
RAW = "raw"
"""First path component of the URLs that declared origins may read."""
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response: the browser loads nothing from other hosts and sends nothing to them."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The parts of a request that access control checks: method, raw path, Host and Origin."""

    method: str
    path: bytes
    host: str | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Accept requests with the token, to this machine, from the viewer's own pages or a declared origin."""

    port: int
    token: str
    origins: frozenset[str]

    @classmethod
    def of(cls, port: int, origins: tuple[str, ...]) -> AccessPolicy:
        """Create a policy with a new random token.

        Args:
            port: Port that the server listens on.
            origins: Origins that may read the raw arrays.

        Raises:
            ConfigError: If an origin is not a scheme and a host.
        """
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"--origin {origin!r}: expected a scheme and a host, as in https://neuroglancer.org")
        return cls(port, secrets.token_urlsafe(24), frozenset(origins))

    @property
    def _hosts(self) -> frozenset[str]:
        return frozenset(f"{name}:{self.port}" for name in (HOST, "localhost"))

    @property
    def address(self) -> str:
        """URL of the start page."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def refuses(self, head: RequestHead) -> int | None:
        """Return the HTTP status of a refusal, or None if the request is allowed."""
        if head.host not in self._hosts:
            return 421
        try:
            path = head.path.decode("ascii")
        except UnicodeDecodeError:
            return 404
        if not ADDRESS.fullmatch(path):
            return 404
        token, _, rest = path[1:].partition("/")
        if not secrets.compare_digest(token, self.token):
            return 404
        is_raw = rest.startswith(f"{RAW}/")
        if not self._allows_origin(head.origin, is_raw=is_raw):
            return 403
        if head.method == "OPTIONS" and is_raw and self.is_declared(head.origin):
            return None  # CORS preflight, sent before the page reads with a Range header
        return None if head.method in ("GET", "HEAD") else 405

    def _allows_origin(self, origin: str | None, *, is_raw: bool) -> bool:
        own_origins = {f"http://{host}" for host in self._hosts}
        return origin is None or origin in own_origins or (is_raw and self.is_declared(origin))

    def is_declared(self, origin: str | None) -> bool:
        """Whether the origin was declared with ``--origin``."""
        return origin in self.origins


def raw_file(store: Path, key: str) -> Path | None:
    """Return the file of an OME-Zarr at ``key``; None if the key is not valid or the file does not exist.

    Raises:
        StoreError: If the file lies outside the OME-Zarr.
    """
    if not KEY.fullmatch(key):
        return None
    path = require_inside(store, store / key)
    return path if path.is_file() else None


def require_inside(root: Path, path: Path) -> Path:
    """Return ``path`` if its resolved location lies below ``root``.

    Raises:
        StoreError: If a symbolic link leads out of ``root``.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"{path} is a link out of {root}: it is not shown")
    return path
