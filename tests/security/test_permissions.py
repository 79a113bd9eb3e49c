"""Permissions of written files: those of the umask, and of the group of OUT where configured."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.batch.batch import BatchRequest
from flows.batch.group_permissions import shared_with_group
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.storage.atomic_files import write_json
from tests.conftest import skip_or_fail
from tests.support.commands import Command
from tests.support.faults.pictures import draw, red_and_blue, write
from unet_core.atomic_write import write_atomically

SHAPE = (150, 210)


def other_group() -> int:
    """A group that is not the default group of new files: any number for root, else one of the user's groups."""
    return 54000 if os.geteuid() == 0 else max({*os.getgroups(), os.getegid()} - {os.getegid()}, default=os.getegid())


def request(out: Path, *settings: str) -> BatchRequest:
    return BatchRequest(inputs=(out,), out=out, config=load_config(None, settings))


@pytest.fixture
def strict() -> Iterator[None]:
    """A umask that grants others nothing and the group reading."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict")
def test_group_permissions_are_set_only_when_configured(tmp_path: Path) -> None:
    for name, settings in (("shared", ["outputs.group_writable=true"]), ("own", [])):
        with shared_with_group(request(tmp_path / name, *settings)):
            write_json(tmp_path / name / "slide" / "plan.json", {})
    write_json(tmp_path / "shared" / "slide" / "later.json", {})
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o7777 for path in tmp_path.rglob("*")}
    assert modes == {
        "shared": 0o2770,
        "shared/slide": 0o2770,
        "shared/slide/plan.json": 0o660,
        "shared/slide/later.json": 0o640,
        "own": 0o750,
        "own/slide": 0o750,
        "own/slide/plan.json": 0o640,
    }


def test_folder_that_cannot_be_shared_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"chmod g\+rwxs"),
        shared_with_group(request(tmp_path / "file", "outputs.group_writable=true")),
    ):
        pytest.fail("access was granted")


@pytest.mark.usefixtures("strict")
def test_files_of_training_follow_the_umask(tmp_path: Path) -> None:
    write_atomically(tmp_path / "best.safetensors", b"weights")
    assert stat.S_IMODE((tmp_path / "best.safetensors").stat().st_mode) == 0o640


@pytest.mark.long
def test_two_users_resume_each_others_slides(overtile: Command, tmp_path: Path) -> None:
    """Two user ids in one group; both may read all files, as a checkout requires."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        skip_or_fail("being two users takes root and setpriv; that the group may write is proven beside")
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest's own, which others may not enter
        folder.chmod(0o755)
    slides, out = tmp_path / "slides", tmp_path / "out"
    write(slides / "one.tif", draw(SHAPE, red_and_blue(SHAPE)))
    out.mkdir()
    os.chown(out, 54001, other_group())
    first, second = (as_user(overtile, tmp_path / str(user), user) for user in (54001, 54002))
    shared = ["tissue=null", "outputs.group_writable=true"]
    ran = first.segment(slides, out, *shared)
    assert ran.code == 0, ran.transcript
    write(slides / "two.tif", draw(SHAPE, red_and_blue(SHAPE)))
    ran = second.segment(slides, out, *shared, "objects.min_area_um2=20.0")
    assert ran.code == 0, ran.transcript
    assert ran.computed("one").keys() >= {"label", "measure"}, "the other's slide was changed"
    assert "predict" not in ran.computed("one")
    owners = {path.stat().st_uid for path in out.rglob("*")}
    assert owners == {54001, 54002}
    ran = first.segment(slides, out, *shared)
    assert ran.code == 0, ran.transcript
    alone = tmp_path / "alone"
    alone.mkdir()
    os.chown(alone, 54001, 54001)
    refused = second.segment(slides, alone, *shared)
    assert refused.code == 2, refused.transcript
    assert "chmod g+rwxs" in refused.only_error


def as_user(command: Command, home: Path, user: int) -> Command:
    """The command as run by another user, who may read everything."""
    (home / "here").mkdir(parents=True)
    for path in (home, home / "here"):
        os.chown(path, user, user)
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={other_group()}", *reading]
    own = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "USER": f"user{user}", "LOGNAME": f"user{user}"}
    return Command({**command.environment, **own}, home / "here", prefix)
