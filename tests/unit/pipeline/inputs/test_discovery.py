"""Slides and their keys; collisions are refused by name; overtile's own output is never input."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pipeline.config import SLIDE_PATTERNS
from pipeline.errors import ConfigError, SlideError
from pipeline.inputs.discovery import Candidate, find_slides, key_of
from pipeline.storage.layout import OWN_NAMES


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


# ---- keys ------------------------------------------------------------------------------------------------------------


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


# ---- search ----------------------------------------------------------------------------------------------------------


def test_folder_is_searched_recursively_in_any_letter_case_sorted_by_key(tmp_path: Path) -> None:
    touch(tmp_path, "z.svs", "a/x.TIF", "a/b/c.Ndpi", "d.btf", "e.tiff", "notes.txt", "f.svs.part")
    found = find(tmp_path)
    assert keys(found) == ["a/b/c", "a/x", "d", "e", "z"]
    assert [candidate.path for candidate in found][:2] == [tmp_path / "a/b/c.Ndpi", tmp_path / "a/x.TIF"]
    assert all(candidate.refused is None for candidate in found)


def test_single_file_needs_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "odd.xyz")
    assert keys(find(tmp_path / "odd.xyz")) == ["odd"]


def test_own_output_and_hidden_folders_are_never_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/a/old.tif", "made.zarr/0/c.tif", "made.ome.ZARR/c.tif", ".cache/c.tif")
    assert keys(find(tmp_path, out=tmp_path / "out")) == ["a"]


def test_output_behind_a_link_is_not_input(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.svs", "in/out/a/old.tif")
    (tmp_path / "link").symlink_to(tmp_path / "in" / "out")
    assert keys(find(tmp_path / "in", out=tmp_path / "link")) == ["a"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert keys(find(tmp_path)) == ["a"]


def test_unreadable_paths_with_slide_extension_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "dangling.tif").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.svs")
    assert keys(find(tmp_path)) == ["a", "dangling", "folder", "pipe"]
    assert keys(find(tmp_path / "dangling.tif")) == ["dangling"]


def test_error_without_slides_names_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConfigError, match=r"tried \*\.svs, \*\.tif"):
        find(tmp_path)


def test_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.*does not exist"):
        find(tmp_path / "absent")


def test_given_patterns_replace_defaults(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.scan")
    assert keys(find(tmp_path, patterns=("*.scan",))) == ["b"]


def test_slide_given_twice_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    found = find(tmp_path, tmp_path / "a.svs", tmp_path / "." / "a.svs", tmp_path)
    assert keys(found) == ["a", "b"]
    assert all(candidate.refused is None for candidate in found)


# ---- collisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s.svs", "s.tif"),
        ("s.tif", "s.ome.tif"),
        ("s.svs", "S.svs"),
        (unicodedata.normalize("NFC", "ü.svs"), unicodedata.normalize("NFD", "ü.svs")),
    ],
)
def test_two_slides_with_one_key_are_refused_by_name_and_others_continue(tmp_path: Path, one: str, other: str) -> None:
    touch(tmp_path, one, other, "fine.svs")
    refused = {candidate.path: candidate.refused for candidate in find(tmp_path)}
    assert refused[tmp_path / "fine.svs"] is None
    for mine, theirs in [(one, other), (other, one)]:
        cause = refused[tmp_path / mine]
        assert isinstance(cause, SlideError)
        assert str(tmp_path / mine) in str(cause)
        assert str(tmp_path / theirs) in str(cause), "the message names the other slide"


@pytest.mark.parametrize("name", sorted(OWN_NAMES))
def test_names_of_the_results_are_refused(tmp_path: Path, name: str) -> None:
    folder = touch(tmp_path / "slides", f"{name}.png", "sound.png", f"deep/{name.upper()}.png", f"x{name}.png")
    refused = {candidate.key for candidate in find(folder, patterns=("*.png",)) if candidate.refused}
    assert refused == {name, f"deep/{name.upper()}"}


def test_two_folders_with_the_same_names_collide(tmp_path: Path) -> None:
    touch(tmp_path, "one/s.svs", "two/s.svs")
    assert [type(candidate.refused) for candidate in find(tmp_path / "one", tmp_path / "two")] == [SlideError] * 2


def test_slide_with_output_inside_that_of_another_is_refused(tmp_path: Path) -> None:
    """``case.svs`` beside ``case/`` with slides in it: one result folder would contain the other."""
    touch(tmp_path, "case.svs", "case/inner.svs", "case2/inner.svs", "cas.svs")
    refused = {candidate.key: candidate.refused for candidate in find(tmp_path)}
    assert refused["cas"] is refused["case2/inner"] is None
    for key in ("case", "case/inner"):
        assert isinstance(refused[key], SlideError)


# ---- slides of several files -----------------------------------------------------------------------------------------


def series(folder: Path, *names: str) -> Path:
    """DICOM files of one series, without pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    for name in names:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = "1.2", generate_uid(), uid
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def ome_zarr(path: Path, version: str = "0.4") -> Path:
    path.mkdir(parents=True)
    image = {"multiscales": [{"datasets": [{"path": "0"}]}]}
    if version == "0.4":
        (path / ".zattrs").write_text(json.dumps(image))
    else:
        (path / "zarr.json").write_text(json.dumps({"attributes": {"ome": image}, "node_type": "group"}))
    return path


def test_mrxs_and_its_folder_are_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Data0000.dat", "a/Slidedat.ini", "a/preview.jpg", "b/c.MRXS", "b/c/x.jpg", "d/e.jpg")
    assert keys(find(tmp_path)) == ["a", "b/c", "d/e"]
    assert all(candidate.refused is None for candidate in find(tmp_path))


def test_files_listed_by_a_vms_are_not_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a(0,1).jpg", "a_map.jpg", "other.jpg")
    (tmp_path / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile(0,1)=a(0,1).jpg\nMapFile=a_map.jpg\n")
    assert keys(find(tmp_path)) == ["a", "other"]


def test_folder_of_one_dicom_series_is_one_slide_keyed_by_folder(tmp_path: Path) -> None:
    folder = series(tmp_path / "in" / "case" / "1.2.840", "b.dcm", "a.dcm", "c.DCM")
    (found,) = find(tmp_path / "in")
    assert (found.key, found.path) == ("case/1.2.840", folder)
    (alone,) = find(folder)
    assert (alone.key, alone.path) == ("1.2.840", folder)


def test_two_dicom_series_in_a_folder_are_two_slides(tmp_path: Path) -> None:
    series(tmp_path, "a.dcm", "b.dcm")
    series(tmp_path, "c.dcm", "d.dcm")
    touch(tmp_path, "broken.dcm")
    assert keys(find(tmp_path)) == ["a", "broken", "c"]


def test_dicom_series_beside_other_slides_is_keyed_by_first_file(tmp_path: Path) -> None:
    series(tmp_path, "b.dcm", "c.dcm")
    touch(tmp_path, "a.svs")
    assert keys(find(tmp_path)) == ["a", "b"]
    assert all(candidate.refused is None for candidate in find(tmp_path))


def test_single_dicom_file_is_a_slide(tmp_path: Path) -> None:
    series(tmp_path / "case", "only.dcm")
    assert keys(find(tmp_path)) == ["case/only"]
    assert keys(find(tmp_path / "case" / "only.dcm")) == ["only"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_a_slide_and_is_not_searched(tmp_path: Path, version: str) -> None:
    ome_zarr(tmp_path / "in" / "a.ome.zarr", version)
    ome_zarr(tmp_path / "in" / "b.ZARR", version)
    touch(tmp_path / "in", "a.ome.zarr/inner.tif", "made.zarr/c.tif")
    assert keys(find(tmp_path / "in")) == ["a", "b"]
    assert keys(find(tmp_path / "in" / "a.ome.zarr")) == ["a"]


def test_results_of_other_runs_are_never_input(tmp_path: Path) -> None:
    """In the output folder of another run, unfinished, or copied elsewhere."""
    touch(
        tmp_path,
        "a.svs",
        "last/a/overview.png",
        "last/a/manifest.json",
        "last/b/.work/plan.json",
        "last/b/overview.png",
    )
    own = ome_zarr(tmp_path / "last" / "a" / "slide.ome.zarr", "0.5")
    copied = ome_zarr(tmp_path / "copied.zarr", "0.5")
    for folder in (own, copied):
        (folder / "0").mkdir()
        (folder / "0" / "zarr.json").write_text(json.dumps({"attributes": {"overtile": {"plan": "x"}}}))
    assert keys(find(tmp_path)) == ["a"]
    for result in ("a", "b"):
        with pytest.raises(ConfigError, match="no slide found"):
            find(tmp_path / "last" / result)


def test_hidden_files_are_not_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "._a.svs", ".b.tif")
    assert keys(find(tmp_path)) == ["a"]


@pytest.mark.parametrize("name", ["a.czi", "a.VSI", "a.isyntax", "a.i2syntax", "a.lif", "a.nd2"])
def test_unreadable_format_is_listed_unless_converted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "b.svs")
    assert keys(find(tmp_path)) == ["a", "b"]
    ome_zarr(tmp_path / "a.zarr")
    found = find(tmp_path)
    assert [candidate.path.name for candidate in found] == ["a.zarr", "b.svs"]
    assert all(candidate.refused is None for candidate in found)


@pytest.mark.parametrize("other", ["s.jpg", "s.zarr", "s.mrxs", "s.dcm"])
def test_key_shared_by_two_formats_is_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "s.png", "fine.jpeg")
    ome_zarr(tmp_path / other) if other == "s.zarr" else touch(tmp_path, other)
    refused = {candidate.path.name: candidate.refused for candidate in find(tmp_path)}
    assert refused.pop("fine.jpeg") is None
    assert {name: type(error) for name, error in refused.items()} == {"s.png": SlideError, other: SlideError}
