"""Hostile requests to ``overtile view``.

They are refused, and no file outside the results is read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.view.access_control import AccessPolicy, raw_file, require_inside
from flows.view.catalog import Catalog
from flows.view.server import serve
from pipeline.errors import ConfigError, StoreError
from tests.support.commands import Command
from tests.support.faults.trees import Finished
from tests.support.sockets import family, listening
from tests.unit.flows.viewing import Viewed, viewing

SECRET = b"secret outside the results"
DECLARED = "https://neuroglancer.example"
ZARR = "slide.ome.zarr"


@pytest.fixture(scope="module")
def viewed(finished: Finished, overtile_alone: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewed]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "secret").write_bytes(SECRET)
    out = folder / "out"
    shutil.copytree(finished.result, out / "slide")
    _with_links(out / "linked", finished.result, folder / "secret")
    shutil.copytree(finished.result, folder / "elsewhere")
    (out / "away").symlink_to(folder / "elsewhere")
    (out / "half").mkdir()
    shutil.copytree(finished.result / ZARR, folder / "zarr")
    shutil.copy2(finished.result / "manifest.json", out / "half")
    (out / "half" / ZARR).symlink_to(folder / "zarr")
    with viewing(overtile_alone, out, "--origin", DECLARED) as server:
        yield server


def _with_links(root: Path, result: Path, secret: Path) -> None:
    """A result with some files replaced by links to a file outside of it."""
    shutil.copytree(result, root)
    for name in ("0/zarr.json", "labels/objects/0/c/0/0", "1/c/0/0/0"):
        (root / ZARR / name).unlink()
        (root / ZARR / name).symlink_to(secret)


def _raw(viewed: Viewed, key: str) -> str:
    return f"{viewed.path}raw/{viewed.names()[key]}/"


def test_fault_64_paths_that_lead_out_are_refused(viewed: Viewed) -> None:
    raw = _raw(viewed, "slide")
    slide = f"{viewed.path}slide/{viewed.names()['slide']}/"
    assert viewed.ask(f"{raw}{ZARR}/zarr.json").status == 200, (
        "the page itself is served, which the refusals below presuppose"
    )
    up = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e/", "..\\", "..%5c", ".%2e/", "%c0%ae%c0%ae/"]
    ends = [step * deep + "secret" for step in up for deep in range(1, 9)]
    ends += [f"{ZARR}/{step * 3}secret" for step in up]
    ends += ["/etc/passwd", "%2fetc%2fpasswd", f"{ZARR}//etc/passwd", f"{ZARR}/0/c/../../../manifest.json"]
    ends += ["%00", f"{ZARR}/zarr.json%00", f"{ZARR}/zarr.json%0d%0a", "manifest.json", ".work/plan.json"]
    ends += [f"{ZARR}/0", f"{ZARR}/0/c", f"{ZARR}/", f"{ZARR}/0/c/0/0/0/", f"{ZARR}/0/c/0/0/00x", f"{ZARR}/.work"]
    ends += [f"{ZARR}/labels/../zarr.json", f"./{ZARR}/zarr.json", f"{ZARR}/0/c/0/-1/0", f"{ZARR}/0/c/0/0/1e1"]
    targets = [start + end for start in (raw, slide, viewed.path, f"{viewed.path}static/", "/") for end in ends]
    targets += [f"http://evil.example{raw}{ZARR}/zarr.json", f"http://{viewed.host}{raw}{ZARR}/zarr.json"]
    targets += [
        viewed.path + page for page in ("static/server.py", "static/../server.py", "slide/secret/", "slide/../")
    ]
    targets += [viewed.path + "slide/" + "a" * 16 + "/", viewed.path + "raw/slide/" + ZARR + "/zarr.json"]
    for target in targets:
        _refuse(viewed, target.encode())
    for target in (
        b"%s\x00" % raw.encode(),
        b"%s\xff\xfe" % raw.encode(),
        b"\\..\\secret",
        b"*",
        b"..",
        b"a" * 100_000,
    ):
        _refuse(viewed, target)


def _refuse(viewed: Viewed, target: bytes) -> None:
    response = viewed.ask(target)
    assert 400 <= response.status < 500, (target, response)
    assert SECRET not in response.body
    assert b"root:" not in response.body
    assert b"zarr_format" not in response.body, target


def test_fault_64_links_out_of_the_results_are_not_followed(viewed: Viewed) -> None:
    assert set(viewed.names()) == {"linked", "slide"}, "a linked folder is not a slide of this folder"
    raw, slide = _raw(viewed, "linked"), f"{viewed.path}slide/{viewed.names()['linked']}/"
    for key in ("0/zarr.json", "labels/objects/0/c/0/0", "1/c/0/0/0"):
        _refuse(viewed, f"{raw}{ZARR}/{key}".encode())
    for tile in ("image/0/0/0", "outlines/0/0/0", "fills/0/0/0", "image/1/0/0"):
        response = viewed.ask(f"{slide}tile/{tile}")
        assert response.status == 404, tile
        assert SECRET not in response.body


def test_fault_64_requests_without_valid_token_host_or_origin_are_refused(viewed: Viewed) -> None:
    page, port = viewed.path, viewed.port
    here = f"127.0.0.1:{port}"
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        "",
        None,
        f"{here}.evil",
    ):
        assert viewed.ask(page, Host=host).status in (400, 421), host
    assert viewed.ask(page, Host=f"localhost:{port}").status == 200
    twice = f"GET {page} HTTP/1.1\r\nHost: {here}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert viewed.send(twice.encode()).status == 400
    assert viewed.ask(page, Origin=f"http://{here}").status == 200
    for origin in ("https://evil.example", "null", f"http://evil.example:{port}", f"https://{here}", DECLARED):
        assert viewed.ask(page, Origin=origin).status == 403, origin
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"):
        assert viewed.ask(page, method).status in (400, 405), method
    token = page.strip("/")
    for wrong in (
        "/",
        "//",
        f"/{token[:-1]}/",
        f"/{token}x/",
        f"/x{page}",
        "/slides.json",
        "/static/view.css",
        "/docs",
    ):
        assert viewed.ask(wrong).status == 404, wrong
    assert len(token) >= 32
    upgrade = {"Upgrade": "websocket", "Sec_WebSocket_Key": "x", "Sec_WebSocket_Version": "13"}
    assert viewed.ask(page, **upgrade).status == 200, "an ordinary response: upgrades are ignored"


def test_fault_64_declared_origins_read_arrays_and_nothing_else(viewed: Viewed) -> None:
    raw = f"{_raw(viewed, 'slide')}{ZARR}/"
    response = viewed.ask(f"{raw}zarr.json", Origin=DECLARED)
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == DECLARED
    assert json.loads(response.body)["zarr_format"] == 3
    whole = viewed.get(f"raw/{viewed.names()['slide']}/{ZARR}/0/c/0/0/1")
    part = viewed.ask(f"{raw}0/c/0/0/1", Origin=DECLARED, Range="bytes=10-29")
    assert (part.status, part.body) == (206, whole[10:30])
    assert viewed.ask(f"{raw}0/c/0/0/1", Range="bytes=-16").body == whole[-16:]
    head = viewed.ask(f"{raw}0/c/0/0/1", "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(whole)))
    before = viewed.ask(f"{raw}zarr.json", "OPTIONS", Origin=DECLARED, Access_Control_Request_Method="GET")
    assert (before.status, before.headers["access-control-allow-methods"]) == (204, "GET, HEAD")
    assert viewed.ask(f"{raw}zarr.json", "OPTIONS").status == 405
    assert viewed.ask(f"{raw}zarr.json", Origin="https://evil.example").status == 403
    assert "access-control-allow-origin" not in viewed.ask(f"{raw}zarr.json").headers
    assert viewed.ask(viewed.path, Origin=DECLARED).status == 403


def test_fault_64_every_response_forbids_network_requests(viewed: Viewed) -> None:
    for target in (viewed.path, viewed.path + "slides.json", viewed.path + "static/slide.js", "/"):
        headers = viewed.ask(target).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_fault_63_64_the_viewer_listens_on_this_machine_alone(viewed: Viewed) -> None:
    sockets = [one for process in family(psutil.Process(viewed.process.pid)) for one in listening(process)]
    assert [one.port for one in sockets] == [viewed.port]
    assert all(one.is_local for one in sockets)


def test_invalid_origin_and_used_port_are_refused(viewed: Viewed, finished: Finished) -> None:
    for origin in ("*", "neuroglancer.org", "https://a.b/c", "file://", "null"):
        with pytest.raises(ConfigError, match="--origin"):
            AccessPolicy.of(1, (origin,))
    with pytest.raises(ConfigError, match=f"--port {viewed.port}"):
        serve(Catalog.at(finished.result), viewed.port, (), pytest.fail)


def test_nothing_is_viewed_where_there_are_no_results(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="holds no results"):
            Catalog.at(folder)


def test_only_keys_of_arrays_become_files(tmp_path: Path) -> None:
    keys = ["zarr.json", "0/zarr.json", "0/c/0/0/0", "labels/zarr.json", "labels/objects/zarr.json", "tissue/c/0/0"]
    keys += ["probability/0/c/0/12/3", "labels/objects/10/c/1/2", "quality/zarr.json"]
    for key in keys:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_text("x")
        assert raw_file(tmp_path, key) == tmp_path / key
        assert raw_file(tmp_path, key + "x") is None
        assert raw_file(tmp_path, "/" + key) is None
        assert raw_file(tmp_path, key + "\n") is None
    assert raw_file(tmp_path, "3/zarr.json") is None
    (tmp_path / "3").symlink_to(tmp_path.parent)
    with pytest.raises(StoreError, match="link"):
        raw_file(tmp_path, "3/zarr.json")
    assert require_inside(tmp_path, tmp_path / "0" / "zarr.json") == tmp_path / "0" / "zarr.json"
