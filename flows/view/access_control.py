"""Who is let in, and to what: every request passes here before anything is looked up.

The one decision made here: nothing that a request says is ever made into a path. An address is a secret token and words
of a small alphabet without escapes; slides have names that were given to them here, arrays have keys that match one
pattern, and what is opened in the end is asked where it really lies. The page of a stranger, open in the same browser,
does not know the token; and if it did, its Host or its Origin would give it away.
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
"""Of any page: no escapes, no empty or hidden parts, hence no way up."""
KEY = re.compile(
    r"(?:(?:labels/|labels/objects/|probability/)?zarr\.json"
    r"|(?:labels/objects/|probability/)?\d{1,2}/(?:zarr\.json|c(?:/\d{1,6}){2,3})"
    r"|(?:tissue|quality)/(?:zarr\.json|c(?:/\d{1,6}){2,3}))",
    re.ASCII,
)
"""Of a file of an OME-Zarr that overtile writes."""
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", re.ASCII)
RAW = "raw"
"""First word of the addresses that programs of declared origins may read."""
SAFE: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer tells the browser: nothing is fetched from elsewhere, and nothing is told elsewhere."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request says of itself: the path as it was sent, and two headers."""

    method: str
    path: bytes
    host: str | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may come in: those who know the token, from this machine, by a page of ours or of a declared origin."""

    port: int
    token: str
    origins: frozenset[str]

    @classmethod
    def of(cls, port: int, origins: tuple[str, ...]) -> AccessPolicy:
        """With a new token. Raises ConfigError for what is no origin."""
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"--origin {origin!r}: expected a scheme and a host, as in https://neuroglancer.org")
        return cls(port, secrets.token_urlsafe(24), frozenset(origins))

    @property
    def _hosts(self) -> frozenset[str]:
        return frozenset(f"{name}:{self.port}" for name in (HOST, "localhost"))

    @property
    def address(self) -> str:
        """Of the first page."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def refuses(self, asked: RequestHead) -> int | None:
        """The status of a refusal, or None."""
        if asked.host not in self._hosts:
            return 421
        try:
            path = asked.path.decode("ascii")
        except UnicodeDecodeError:
            return 404
        if not ADDRESS.fullmatch(path):
            return 404
        token, _, rest = path[1:].partition("/")
        if not secrets.compare_digest(token, self.token):
            return 404
        is_raw = rest.startswith(f"{RAW}/")
        if not self._welcomes(asked.origin, is_raw=is_raw):
            return 403
        if asked.method == "OPTIONS" and is_raw and self.is_declared(asked.origin):
            return None  # the browser asks on behalf of the page, before it reads with Range
        return None if asked.method in ("GET", "HEAD") else 405

    def _welcomes(self, origin: str | None, *, is_raw: bool) -> bool:
        ours = {f"http://{host}" for host in self._hosts}
        return origin is None or origin in ours or (is_raw and self.is_declared(origin))

    def is_declared(self, origin: str | None) -> bool:
        """Whether programs of that origin were let in by name."""
        return origin in self.origins


def raw_file(store: Path, key: str) -> Path | None:
    """The file of an OME-Zarr at ``key``; None where the key is none of ours, or no file lies there."""
    if not KEY.fullmatch(key):
        return None
    path = require_inside(store, store / key)
    return path if path.is_file() else None


def require_inside(root: Path, path: Path) -> Path:
    """``path``, when it really lies below ``root``. Raises StoreError where a link leads out of it."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise StoreError(f"{path} is a link out of {root}: it is not shown")
    return path
