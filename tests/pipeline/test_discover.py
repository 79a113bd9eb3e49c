"""Which files become slides, under which key; collisions by name; overtile's own output is never input."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SLIDE_PATTERNS
from pipeline.discover import Candidate, find_slides, key_of
from pipeline.errors import ConfigError, SlideError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def find(
    *inputs: Path, out: Path = Path("/nowhere/out"), patterns: tuple[str, ...] = SLIDE_PATTERNS
) -> list[Candidate]:
    return find_slides(inputs, patterns, out)


def keys(candidates: list[Candidate]) -> list[str]:
    return [candidate.key for candidate in candidates]


# ---- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.svs", "a"),
        ("sub/b.tif", "sub/b"),
        ("sub/c.OME.TIF", "sub/c"),
        ("d.ome.tiff", "d"),
        ("e.v2.svs", "e.v2"),
        ("ome.tif", "ome"),
        (".tif", ".tif"),
        ("with space ü.svs", "with space ü"),
        ("-dash.svs", "-dash"),
        ("new\nline.svs", "new\nline"),
    ],
)
def test_key_is_the_path_without_its_extension(path: str, key: str) -> None:
    assert key_of(Path(path)) == key


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=1, max_size=4))
def test_key_keeps_the_folders(parts: list[str]) -> None:
    path = Path(*parts[:-1], parts[-1] + ".svs")
    assert key_of(path) == "/".join(parts)


# ---- what is found -------------------------------------------------------------------------------------------------


def test_folder_is_searched_to_the_bottom_sorted_by_key_whatever_the_case_of_the_extension(tmp_path: Path) -> None:
    touch(tmp_path, "z.svs", "a/x.TIF", "a/b/c.Ndpi", "d.btf", "e.tiff", "notes.txt", "f.svs.part")
    found = find(tmp_path)
    assert keys(found) == ["a/b/c", "a/x", "d", "e", "z"]
    assert [candidate.path for candidate in found][:2] == [tmp_path / "a/b/c.Ndpi", tmp_path / "a/x.TIF"]
    assert all(candidate.refused is None for candidate in found)


def test_a_single_file_needs_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "odd.xyz")
    assert keys(find(tmp_path / "odd.xyz")) == ["odd"]


def test_own_output_and_hidden_folders_are_never_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/a/old.tif", "made.zarr/0/c.tif", "made.ome.ZARR/c.tif", ".cache/c.tif")
    assert keys(find(tmp_path, out=tmp_path / "out")) == ["a"]


def test_output_reached_through_a_link_is_no_input_either(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.svs", "in/out/a/old.tif")
    (tmp_path / "link").symlink_to(tmp_path / "in" / "out")
    assert keys(find(tmp_path / "in", out=tmp_path / "link")) == ["a"]


def test_links_to_folders_are_not_followed_so_a_loop_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert keys(find(tmp_path)) == ["a"]


def test_things_that_only_look_like_slides_are_found_so_that_they_fail_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "dangling.tif").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.svs")
    assert keys(find(tmp_path)) == ["a", "dangling", "folder", "pipe"]
    assert keys(find(tmp_path / "dangling.tif")) == ["dangling"]


def test_nothing_found_names_the_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConfigError, match=r"tried \*\.svs, \*\.tif"):
        find(tmp_path)


def test_absent_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.*does not exist"):
        find(tmp_path / "absent")


def test_other_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.scan")
    assert keys(find(tmp_path, patterns=("*.scan",))) == ["b"]


def test_the_same_slide_asked_for_twice_is_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    found = find(tmp_path, tmp_path / "a.svs", tmp_path / "." / "a.svs", tmp_path)
    assert keys(found) == ["a", "b"]
    assert all(candidate.refused is None for candidate in found)


# ---- collisions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s.svs", "s.tif"),
        ("s.tif", "s.ome.tif"),
        ("s.svs", "S.svs"),
        (unicodedata.normalize("NFC", "ü.svs"), unicodedata.normalize("NFD", "ü.svs")),
    ],
)
def test_two_slides_with_one_key_are_refused_by_name_and_the_others_go_on(tmp_path: Path, one: str, other: str) -> None:
    touch(tmp_path, one, other, "fine.svs")
    refused = {candidate.path: candidate.refused for candidate in find(tmp_path)}
    assert refused[tmp_path / "fine.svs"] is None
    for mine, theirs in [(one, other), (other, one)]:
        cause = refused[tmp_path / mine]
        assert isinstance(cause, SlideError)
        assert str(tmp_path / mine) in str(cause)
        assert str(tmp_path / theirs) in str(cause), "the message names the other slide"


def test_two_folders_with_the_same_names_collide(tmp_path: Path) -> None:
    touch(tmp_path, "one/s.svs", "two/s.svs")
    assert [type(candidate.refused) for candidate in find(tmp_path / "one", tmp_path / "two")] == [SlideError] * 2


def test_a_slide_whose_output_would_lie_inside_another_s_is_refused(tmp_path: Path) -> None:
    """``case.svs`` beside ``case/`` with slides in it: one result folder would hold the other's."""
    touch(tmp_path, "case.svs", "case/inner.svs", "case2/inner.svs", "cas.svs")
    refused = {candidate.key: candidate.refused for candidate in find(tmp_path)}
    assert refused["cas"] is refused["case2/inner"] is None
    for key in ("case", "case/inner"):
        assert isinstance(refused[key], SlideError)
