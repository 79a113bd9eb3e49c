"""The server behind ``overtile view``: addresses to answers. The only room of starlette.

The one decision made here: it answers questions and does nothing else. There is no state but caches, no request changes
anything, and every one goes through the door before an address is even compared.
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
from flows.view.access_control import HOST, RAW, SAFE, AccessPolicy, RequestHead, raw_file, require_inside
from flows.view.catalog import Catalog, slide_details, small_picture
from flows.view.objects_table import COLUMNS, MOST_PICKED, ROWS, Filter
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
MOST_AT_ONCE = 64
TILES_AT_ONCE = 2
"""More threads wait for one another rather than for the disk: 24 tiles take 200 ms with two, and 300 ms with 40."""
LAST_S = 2
"""What is under way when it is ended may take so long."""


def serve(library: Catalog, port: int, origins: tuple[str, ...], announce: Callable[[str], object]) -> None:
    """Answer on 127.0.0.1 until a signal comes, which is then raised. ``announce`` is told the address.

    Raises ConfigError when the port is taken.
    """
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}. Leave it out, and a free one is found") from error
    listening.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # else a small tile waits 40 ms for its head's receipt
    door = AccessPolicy.of(listening.getsockname()[1], origins)
    config = uvicorn.Config(
        Guard(pages(library, door), door),
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=LAST_S,
        server_header=False,
        proxy_headers=False,
    )
    announce(door.address)
    Thread(target=import_module, args=("zarr",), daemon=True).start()  # for the first tile, while a browser starts
    uvicorn.Server(config).run(sockets=[listening])


@dataclass(frozen=True, slots=True)
class Guard:
    """Stands before the pages: refuses, or answers with what every answer carries."""

    app: ASGIApp
    door: AccessPolicy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        assert scope["type"] == "http", "nothing else is served"
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        asked = RequestHead(scope["method"], scope["raw_path"], headers.get(b"host"), origin)
        more = {**SAFE, **self._shared(scope, origin)}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in more.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        refused = self.door.refuses(asked)
        app = self.app if refused is None else PlainTextResponse("refused\n", refused)
        await app(scope, receive, answer)

    def _shared(self, scope: Scope, origin: str | None) -> Mapping[str, str]:
        """What lets a program of a declared origin read the raw arrays."""
        if origin is None or not self.door.is_declared(origin) or f"/{RAW}/" not in scope["path"]:
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


def pages(library: Catalog, door: AccessPolicy) -> Starlette:
    """All addresses. Each begins with the token, which the door has compared."""
    here = Answers(library, door, ThreadPoolExecutor(TILES_AT_ONCE))
    slide = "/{token}/slide/{name}"
    routes = {
        "/{token}/": here.batch,
        "/{token}/slides.json": here.slides,
        "/{token}/static/{file}": here.static,
        f"{slide}/": here.slide,
        f"{slide}/about.json": here.about,
        f"{slide}/thumbnail.jpg": here.thumbnail,
        f"{slide}/{OVERVIEW}": here.overview,
        f"{slide}/tile/{{layer}}/{{level:int}}/{{row:int}}/{{col:int}}": here.tile,
        f"{slide}/at.json": here.at,
        f"{slide}/objects.json": here.objects,
        f"{slide}/objects.csv": here.csv,
        f"{slide}/histograms.json": here.histograms,
    }
    raw = Route(f"/{{token}}/{RAW}/{{name}}/{{key:path}}", here.raw, methods=["GET", "OPTIONS"])
    failures = {OvertileError: _refused, ValueError: _refused}
    every = [*(Route(path, answer) for path, answer in routes.items()), raw]
    app = Starlette(routes=every, exception_handlers=failures)
    app.router.redirect_slashes = False  # an address is right or wrong
    return app


def _refused(_request: Request, error: Exception) -> Response:
    """What was asked for is not there, or cannot be read; said in words, as a command would."""
    return PlainTextResponse(printable(str(error)) + "\n", 404)


@dataclass(frozen=True, slots=True)
class Answers:
    """What is said to each address."""

    library: Catalog
    door: AccessPolicy
    pool: ThreadPoolExecutor

    # ---- batch --------------------------------------------------------------------------------------------------

    def batch(self, _request: Request) -> Response:
        """The page of all slides; of one slide alone, its own."""
        if self.library.alone:
            (card,) = self.library.cards()
            if card["name"] is not None:
                return RedirectResponse(f"slide/{card['name']}/")
        return _page(fill("view_batch.html.j2", {"title": printable(self.library.root.name)}))

    def slides(self, _request: Request) -> Response:
        """All cards."""
        return _json({"slides": self.library.cards()})

    def static(self, request: Request) -> Response:
        """Style, scripts, and the library that pans and zooms."""
        file = request.path_params["file"]
        return FileResponse(STATIC / file) if file in STATIC_FILES else _missing()

    # ---- one slide ----------------------------------------------------------------------------------------------

    def slide(self, request: Request) -> Response:
        """The page of a slide."""
        slide = self._slide(request)
        content = {
            "title": printable(slide.facts.name),
            "alone": self.library.alone,
            "complete": slide.complete,
            "groups": slide_details(slide),
            "image": "image" in slide.layers(),
            "overview": (slide.store.root / OVERVIEW).is_file(),
            "raw": f"{self.door.address}{RAW}/{request.path_params['name']}/{slide.store.zarr.name}",
        }
        return _page(fill("view_slide.html.j2", content))

    def about(self, request: Request) -> Response:
        """What the page's script has to know."""
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
        """The slide in small."""
        picture = small_picture(self._slide(request))
        return _missing() if picture is None else Response(picture, media_type="image/jpeg", headers=_KEPT)

    def overview(self, request: Request) -> Response:
        """The picture that every result has."""
        root = self._store(request).root
        path = require_inside(root, root / OVERVIEW)
        return FileResponse(path) if path.is_file() else _missing()

    async def tile(self, request: Request) -> Response:
        """A tile of a layer; ``t`` is the threshold of that layer, and of objects those of a filter are shown."""
        return await get_running_loop().run_in_executor(self.pool, self._tile, request)

    def _tile(self, request: Request) -> Response:
        slide, asked = self._slide(request), request.path_params
        place = slide.place(asked["level"], asked["row"], asked["col"])
        if place is None or asked["layer"] not in slide.layers():
            return _missing()
        threshold = _number(request, "t")
        threshold = slide.facts.threshold if threshold is None else threshold
        picture = slide.tile(asked["layer"], place, threshold, _filter(request))
        return Response(picture, media_type=media_type(picture), headers=_KEPT if slide.complete else _FRESH)

    def at(self, request: Request) -> Response:
        """The object at a pixel of the image; null beside objects."""
        slide = self._slide(request)
        y, x = (_number(request, name) for name in "yx")
        identity = slide.label_at(int(y), int(x)) if y is not None and x is not None else 0
        table = slide.objects() if identity else None
        return _json({"object": None if table is None else table.row(identity), "id": identity})

    # ---- its objects --------------------------------------------------------------------------------------------

    def objects(self, request: Request) -> Response:
        """A page of rows."""
        order, page = request.query_params.get("order", "id"), _number(request, "page") or 0
        if order.removeprefix("-") not in COLUMNS or page < 0:
            return _missing()
        return _json(self._table(request).page(_filter(request), order, int(page)))

    def csv(self, request: Request) -> Response:
        """All columns of the objects chosen."""
        table, chosen = self._table(request), _filter(request)
        headers = {**_FRESH, "Content-Disposition": 'attachment; filename="objects.csv"'}
        return StreamingResponse(table.csv(chosen), media_type="text/csv; charset=utf-8", headers=headers)

    def histograms(self, request: Request) -> Response:
        """Of area and probability of the objects chosen."""
        return _json(self._table(request).histograms(_filter(request)))

    # ---- raw ----------------------------------------------------------------------------------------------------

    def raw(self, request: Request) -> Response:
        """A file of the OME-Zarr, or a part of one."""
        if request.method == "OPTIONS":
            return Response(status_code=204)
        store = self._store(request)
        folder, _, key = request.path_params["key"].partition("/")
        path = raw_file(store.zarr, key) if folder == store.zarr.name else None
        return _missing() if path is None else FileResponse(path, media_type="application/octet-stream")

    # ---- who is asked for ---------------------------------------------------------------------------------------

    def _store(self, request: Request) -> SlideStore:
        store = self.library.find(request.path_params["name"])
        if store is None:
            raise StoreError("there is no slide of that name here")
        return store

    def _slide(self, request: Request) -> Slide:
        slide = self.library.slide(request.path_params["name"])
        if slide is None:
            raise StoreError("there is no slide of that name here, or nothing is planned for it yet")
        return slide

    def _table(self, request: Request) -> Any:
        table = self._slide(request).objects()
        if table is None:
            raise StoreError("there are no objects here, or not yet")
        return table


_FRESH = {"Cache-Control": "no-store"}
_KEPT = {"Cache-Control": "private, max-age=3600"}


def _page(text: str) -> Response:
    return Response(text, media_type="text/html; charset=utf-8", headers=_FRESH)


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_FRESH)


def _missing() -> Response:
    return PlainTextResponse("there is nothing here\n", 404)


def _number(request: Request, name: str) -> float | None:
    """A number of the query; None where it is absent. Raises ValueError for what is none, or endless."""
    text = request.query_params.get(name, "")
    if not text:
        return None
    value = float(text)
    if not isfinite(value) or abs(value) > 1e9:
        raise ValueError(f"{name}: expected a number, found {text[:20]!r}")
    return value


def _filter(request: Request) -> Filter:
    """Which objects a query asks for."""
    names = ("least_area", "most_area", "least_probability", "most_probability")
    bounds = {name: _number(request, name) for name in names}
    picked = tuple(int(word) for word in request.query_params.get("ids", "").split(",") if word)
    if len(picked) > MOST_PICKED or any(not 1 <= identity < 2**32 for identity in picked):
        raise ValueError(f"ids: expected at most {MOST_PICKED} numbers from 1 on")
    return Filter(**bounds, ids=picked)
