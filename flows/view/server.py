"""The HTTP server of ``overtile view``. No other module of the viewer imports starlette.

The server is read-only: it keeps no state but caches, and no request changes anything. Access control runs before a
request is routed.
"""

from __future__ import annotations

import socket
from asyncio import get_running_loop
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.reports.html_page import fill
from flows.view.access_control import HOST, RAW, SECURITY_HEADERS, AccessPolicy, RequestHead, raw_file, require_inside
from flows.view.catalog import Catalog, slide_details, small_picture
from flows.view.objects_table import COLUMNS, MAX_SELECTED, ROWS, Filter
from flows.view.slide_tiles import Slide
from flows.view.tile_renderer import media_type
from pipeline.config import CELL_PX
from pipeline.errors import ConfigError, OvertileError, StoreError
from pipeline.printable import printable
from pipeline.rendering.contrast import class_colours
from pipeline.storage.layout import OVERVIEW
from pipeline.storage.slide_store import SlideStore

STATIC = Path(__file__).parent / "static"
STATIC_FILES = {"openseadragon.min.js", "slide.js", "batch.js", "view.css"}
MAX_CONNECTIONS = 64
TILE_THREADS = 2
"""Threads that render tiles. More threads wait for each other rather than for the disk: 24 tiles take 200 ms with 2
threads and 300 ms with 40."""
SHUTDOWN_S = 2
"""Time that requests in progress may take after a signal."""


def serve(catalog: Catalog, port: int, origins: tuple[str, ...], announce: Callable[[str], object]) -> None:
    """Serve a catalog on 127.0.0.1 until a signal arrives, which is then raised again.

    Args:
        catalog: The slides to serve.
        port: Port to listen on; 0 selects a free one.
        origins: Origins that may read the raw arrays.
        announce: Called with the URL of the start page.

    Raises:
        ConfigError: If the port is in use.
    """
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}. Omit it to use a free port") from error
    # Without TCP_NODELAY the body of a small tile waits 40 ms until its header is acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    policy = AccessPolicy.of(listening.getsockname()[1], origins)
    config = uvicorn.Config(
        AccessMiddleware(create_app(catalog, policy), policy),
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
        proxy_headers=False,
    )
    announce(policy.address)
    Thread(
        target=import_module, args=("zarr",), daemon=True
    ).start()  # needed by the first tile; takes as long as a browser to start
    uvicorn.Server(config).run(sockets=[listening])


@dataclass(frozen=True, slots=True)
class AccessMiddleware:
    """ASGI middleware that refuses requests and adds the security headers to every response."""

    app: ASGIApp
    policy: AccessPolicy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        assert scope["type"] == "http", "websockets and lifespan are disabled"
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        head = RequestHead(scope["method"], scope["raw_path"], headers.get(b"host"), origin)
        extra = {**SECURITY_HEADERS, **self._cors_headers(scope, origin)}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        status = self.policy.refuses(head)
        app = self.app if status is None else PlainTextResponse("refused\n", status)
        await app(scope, receive, send_with_headers)

    def _cors_headers(self, scope: Scope, origin: str | None) -> Mapping[str, str]:
        """Headers that let pages of a declared origin read the raw arrays."""
        if origin is None or not self.policy.is_declared(origin) or f"/{RAW}/" not in scope["path"]:
            return {}
        return {
            "Access-Control-Allow-Headers": "Range",
            "Access-Control-Allow-Methods": "GET, HEAD",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Private-Network": "true",
            "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }


def create_app(catalog: Catalog, policy: AccessPolicy) -> Starlette:
    """Create the application with all routes. Each path begins with the token, which the middleware has checked."""
    endpoints = Endpoints(catalog, policy, ThreadPoolExecutor(TILE_THREADS))
    slide = "/{token}/slide/{name}"
    routes = {
        "/{token}/": endpoints.batch,
        "/{token}/slides.json": endpoints.slides,
        "/{token}/static/{file}": endpoints.static,
        f"{slide}/": endpoints.slide,
        f"{slide}/about.json": endpoints.about,
        f"{slide}/thumbnail.jpg": endpoints.thumbnail,
        f"{slide}/{OVERVIEW}": endpoints.overview,
        f"{slide}/tile/{{layer}}/{{level:int}}/{{row:int}}/{{col:int}}": endpoints.tile,
        f"{slide}/at.json": endpoints.at,
        f"{slide}/objects.json": endpoints.objects,
        f"{slide}/objects.csv": endpoints.csv,
        f"{slide}/histograms.json": endpoints.histograms,
    }
    raw = Route(f"/{{token}}/{RAW}/{{name}}/{{key:path}}", endpoints.raw, methods=["GET", "OPTIONS"])
    handlers = {OvertileError: _error_response, ValueError: _error_response}
    all_routes = [*(Route(path, endpoint) for path, endpoint in routes.items()), raw]
    app = Starlette(routes=all_routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a path must match exactly
    return app


def _error_response(_request: Request, error: Exception) -> Response:
    """Return 404 with the message of the error: the requested item does not exist or cannot be read."""
    return PlainTextResponse(printable(str(error)) + "\n", 404)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """One method for each URL."""

    catalog: Catalog
    policy: AccessPolicy
    pool: ThreadPoolExecutor

    # ---- all slides ---------------------------------------------------------------------------------------------

    def batch(self, _request: Request) -> Response:
        """The page of all slides; a single slide redirects to its own page."""
        if self.catalog.alone:
            (card,) = self.catalog.cards()
            if card["name"] is not None:
                return RedirectResponse(f"slide/{card['name']}/")
        return _page(fill("view_batch.html.j2", {"title": printable(self.catalog.root.name)}))

    def slides(self, _request: Request) -> Response:
        """The cards of all slides as JSON."""
        return _json({"slides": self.catalog.cards()})

    def static(self, request: Request) -> Response:
        """Style sheet, scripts, and OpenSeadragon."""
        file = request.path_params["file"]
        return FileResponse(STATIC / file) if file in STATIC_FILES else _not_found()

    # ---- one slide ----------------------------------------------------------------------------------------------

    def slide(self, request: Request) -> Response:
        """The page of a slide."""
        slide = self._slide(request)
        content = {
            "title": printable(slide.facts.name),
            "alone": self.catalog.alone,
            "complete": slide.complete,
            "groups": slide_details(slide),
            "image": "image" in slide.layers(),
            "overview": (slide.store.root / OVERVIEW).is_file(),
            "raw": f"{self.policy.address}{RAW}/{request.path_params['name']}/{slide.store.zarr.name}",
        }
        return _page(fill("view_slide.html.j2", content))

    def about(self, request: Request) -> Response:
        """The facts that the script of the page needs, as JSON."""
        slide = self._slide(request)
        facts, (height, width) = slide.facts, slide.facts.shape_yx
        colours = facts.colours or class_colours(len(facts.class_names))
        return _json(
            {
                **{"height": height, "width": width, "mpp": facts.mpp, "levels": facts.levels, "tile": CELL_PX},
                **{"layers": slide.layers(), "threshold": facts.threshold, "complete": slide.complete, "rows": ROWS},
                **{"version": slide.version, "coarsest": slide.coarsest()},
                "classes": [[printable(name), colour] for name, colour in zip(facts.class_names, colours, strict=True)],
                "objects": slide.count(),
            }
        )

    def thumbnail(self, request: Request) -> Response:
        """A small JPEG of the slide."""
        picture = small_picture(self._slide(request))
        return _not_found() if picture is None else Response(picture, media_type="image/jpeg", headers=_CACHED)

    def overview(self, request: Request) -> Response:
        """The overview picture of the slide."""
        root = self._store(request).root
        path = require_inside(root, root / OVERVIEW)
        return FileResponse(path) if path.is_file() else _not_found()

    async def tile(self, request: Request) -> Response:
        """A tile of a layer. Query: ``t`` sets the threshold of that layer, filter bounds select the objects drawn."""
        return await get_running_loop().run_in_executor(self.pool, self._tile, request)

    def _tile(self, request: Request) -> Response:
        slide, parameters = self._slide(request), request.path_params
        position = slide.tile_position(parameters["level"], parameters["row"], parameters["col"])
        if position is None or parameters["layer"] not in slide.layers():
            return _not_found()
        threshold = _number(request, "t")
        threshold = slide.facts.threshold if threshold is None else threshold
        picture = slide.tile(parameters["layer"], position, threshold, _filter(request))
        return Response(picture, media_type=media_type(picture), headers=_CACHED if slide.complete else _UNCACHED)

    def at(self, request: Request) -> Response:
        """The object at a pixel of the image as JSON; null if there is none."""
        slide = self._slide(request)
        y, x = (_number(request, name) for name in "yx")
        identity = slide.label_at(int(y), int(x)) if y is not None and x is not None else 0
        table = slide.objects() if identity else None
        return _json({"object": None if table is None else table.row(identity), "id": identity})

    # ---- objects of a slide -------------------------------------------------------------------------------------

    def objects(self, request: Request) -> Response:
        """A page of table rows as JSON."""
        order, page = request.query_params.get("order", "id"), _number(request, "page") or 0
        if order.removeprefix("-") not in COLUMNS or page < 0:
            return _not_found()
        return _json(self._table(request).page(_filter(request), order, int(page)))

    def csv(self, request: Request) -> Response:
        """All columns of the selected objects as CSV."""
        table, objects_filter = self._table(request), _filter(request)
        headers = {**_UNCACHED, "Content-Disposition": 'attachment; filename="objects.csv"'}
        return StreamingResponse(table.csv(objects_filter), media_type="text/csv; charset=utf-8", headers=headers)

    def histograms(self, request: Request) -> Response:
        """Histograms of area and probability of the selected objects as JSON."""
        return _json(self._table(request).histograms(_filter(request)))

    # ---- raw arrays ---------------------------------------------------------------------------------------------

    def raw(self, request: Request) -> Response:
        """A file of the OME-Zarr, or a byte range of it."""
        if request.method == "OPTIONS":
            return Response(status_code=204)
        store = self._store(request)
        folder, _, key = request.path_params["key"].partition("/")
        path = raw_file(store.zarr, key) if folder == store.zarr.name else None
        return _not_found() if path is None else FileResponse(path, media_type="application/octet-stream")

    # ---- lookup -------------------------------------------------------------------------------------------------

    def _store(self, request: Request) -> SlideStore:
        store = self.catalog.find(request.path_params["name"])
        if store is None:
            raise StoreError("unknown slide")
        return store

    def _slide(self, request: Request) -> Slide:
        slide = self.catalog.slide(request.path_params["name"])
        if slide is None:
            raise StoreError("unknown slide, or nothing has been planned for it yet")
        return slide

    def _table(self, request: Request) -> Any:
        table = self._slide(request).objects()
        if table is None:
            raise StoreError("this slide has no objects, or not yet")
        return table


_UNCACHED = {"Cache-Control": "no-store"}
_CACHED = {"Cache-Control": "private, max-age=3600"}


def _page(text: str) -> Response:
    return Response(text, media_type="text/html; charset=utf-8", headers=_UNCACHED)


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_UNCACHED)


def _not_found() -> Response:
    return PlainTextResponse("not found\n", 404)


def _number(request: Request, name: str) -> float | None:
    """Return a number from the query string, or None if it is absent.

    Raises:
        ValueError: If it is not a finite number of moderate size.
    """
    text = request.query_params.get(name, "")
    if not text:
        return None
    value = float(text)
    if not isfinite(value) or abs(value) > 1e9:
        raise ValueError(f"{name}: expected a number, found {text[:20]!r}")
    return value


def _filter(request: Request) -> Filter:
    """Return the object filter of the query string.

    Raises:
        ValueError: If a bound or an id is invalid.
    """
    names = ("least_area", "most_area", "least_probability", "most_probability")
    bounds = {name: _number(request, name) for name in names}
    ids = tuple(int(text) for text in request.query_params.get("ids", "").split(",") if text)
    if len(ids) > MAX_SELECTED or any(not 1 <= identity < 2**32 for identity in ids):
        raise ValueError(f"ids: expected at most {MAX_SELECTED} numbers, each at least 1")
    return Filter(**bounds, ids=ids)
