"""Proxies of the environment: a run reaches its own servers without them, whatever they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.proxies import exclude_this_machine
from tests.support.commands import Command
from tests.support.faults.pictures import draw, red_and_blue, write

HTTP = "http://user:secret@proxy.lab:3128"


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    """A socket that no process should connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def test_slide_is_segmented_behind_proxies(tmp_path: Path, proxy: socket.socket) -> None:
    """They are not asked for the Prefect server and the workers, which listen on this machine."""
    at = f"127.0.0.1:{proxy.getsockname()[1]}"
    slide = write(tmp_path / "slide.tif", draw((64, 64), red_and_blue((64, 64))))
    overtile = Command.under(tmp_path, None).with_environment(http_proxy=f"http://{at}", ALL_PROXY=f"socks5://{at}")
    ran = overtile.segment(slide, tmp_path / "out")
    assert ran.code == 0, ran.transcript
    with pytest.raises(BlockingIOError):
        proxy.accept()


def test_doctor_names_proxies_without_their_passwords(tmp_path: Path) -> None:
    overtile = Command.under(tmp_path, None).with_environment(http_proxy=HTTP, ALL_PROXY="socks://proxy.lab:1")
    ran = overtile.run("doctor")
    assert ran.code == 0, ran.transcript
    assert "http_proxy" in ran.stdout
    assert "ignored" in ran.stdout
    assert "secret" not in ran.transcript


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"no_proxy": "lab"}, {"no_proxy": "lab"}),
        ({"http_proxy": ""}, {"http_proxy": ""}),
        ({"http_proxy": HTTP}, {"http_proxy": HTTP, "no_proxy": "127.0.0.1,localhost"}),
        ({"HTTPS_PROXY": "proxy.lab:3128"}, {"HTTPS_PROXY": "proxy.lab:3128", "no_proxy": "127.0.0.1,localhost"}),
        ({"http_proxy": HTTP, "NO_PROXY": "a, b"}, {"http_proxy": HTTP, "no_proxy": "a,b,127.0.0.1,localhost"}),
        (
            {"http_proxy": HTTP, "NO_PROXY": "a", "no_proxy": "localhost"},
            {"http_proxy": HTTP, "no_proxy": "localhost,a,127.0.0.1"},
        ),
        ({"http_proxy": HTTP, "no_proxy": "*"}, {"http_proxy": HTTP, "no_proxy": "*"}),
        ({"all_proxy": "socks5://proxy.lab:1"}, {"no_proxy": "127.0.0.1,localhost"}),
        ({"all_proxy": "socks://proxy.lab:1"}, {"no_proxy": "127.0.0.1,localhost"}),
        (
            {"ALL_PROXY": "ftp://proxy.lab:1", "http_proxy": HTTP},
            {"http_proxy": HTTP, "no_proxy": "127.0.0.1,localhost"},
        ),
        ({"http_proxy": "http://proxy.lab:port"}, {"no_proxy": "127.0.0.1,localhost"}),
    ],
)
def test_variables_after_this_machine_is_excluded(before: dict[str, str], after: dict[str, str]) -> None:
    """Both spellings of `no_proxy` are set, because programs differ in which they read."""
    environment = dict(before)
    exclude_this_machine(environment)
    if environment != before:
        assert environment.pop("NO_PROXY") == environment["no_proxy"]
    assert environment == after
