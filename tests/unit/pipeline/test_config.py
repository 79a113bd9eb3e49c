"""Defaults in one place, no silent correction, and every error names what was found and what is expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import SLIDE_PATTERNS, RunConfig, load_config
from pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("segment*.yaml"))

DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"weights": "nuclei", "tta": "none"},
    "input": {"pattern": SLIDE_PATTERNS, "mpp": None, "cases": None, "regions": None, "channels": None}
    | {"order": None, "settle_s": 0.0, "on_bad_tile": "fail", "patience_s": 600.0},
    "tissue": {"method": "otsu", "min_area_um2": 4000.0, "fill_holes_um2": 40000.0, "exclude_qc": False},
    "tiles": {"tile": "auto", "block": 2048},
    "compute": {"device": "auto", "precision": "auto"},
    "objects": {
        "method": "auto",
        "threshold": None,
        "connectivity": 8,
        "min_area_um2": None,
        "max_area_um2": None,
        "open_um": 0.0,
        "close_um": 0.0,
        "fill_holes_um2": 0.0,
        "split": "none",
        "split_depth_um": 0.75,
        "split_max_um": 200.0,
        "seed_depth": None,
    },
    "outputs": {
        "image": "keep",
        "probability": "keep",
        "scratch": None,
        "max_gb": None,
        "redact": None,
        "group_writable": False,
        "geojson": True,
        "overview": True,
    },
    "cluster": {
        "kind": "local",
        "workers": "auto",
        "slides_at_once": "auto",
        "address": None,
        "tls": None,
        "sbatch": (),
    },
}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- defaults ------------------------------------------------------------------------------------------------------


def test_every_key_has_its_documented_default() -> None:
    assert load_config(None).model_dump() == DEFAULTS


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "null\n"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == RunConfig()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(None).tiles.block = 512  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    load_config(path)


def test_the_segment_example_spells_out_every_key_with_its_default() -> None:
    path = next(path for path in CONFIGS if path.name == "segment.yaml")
    assert load_config(path) == RunConfig()
    written = {section: set(keys) for section, keys in yaml.safe_load(path.read_text()).items()}
    assert written == {section: set(keys) for section, keys in DEFAULTS.items()}


def test_optional_sections_can_be_switched_off_and_the_others_cannot(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "tissue: null\nobjects: null\n"))
    assert (config.tissue, config.objects) == (None, None)
    for section in set(DEFAULTS) - {"tissue", "objects"}:
        with pytest.raises(ConfigError, match=section):
            load_config(write(tmp_path, f"{section}: null\n"))


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        ("tile: {block: 512}", "'tile'", "'tiles'"),
        ("tiles: {blok: 512}", "'tiles.blok'", "'block'"),
        ("objects: {treshold: 0.5}", "'objects.treshold'", "'threshold'"),
        ("objects: {fill_hole_um2: 1}", "'objects.fill_hole_um2'", "'fill_holes_um2'"),
        ("compute: {presicion: fp32}", "'compute.presicion'", "'precision'"),
        ("cluster: {worker: 2}", "'cluster.worker'", "'workers'"),
        ("Model: {weights: nuclei}", "'Model'", "'model'"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_named(tmp_path: Path, text: str, wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert f"unknown key {wrong}: did you mean {meant}?" in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_unknown_key_without_similar_key_lists_known_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'tiles.zzz': known: tile, block"):
        load_config(write(tmp_path, "tiles: {zzz: 1}"))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "tiles: {block: 100}\nobjects: {connectivity: 6}\nmodle: {}\n"))
    assert all(part in str(caught.value) for part in ("tiles.block", "objects.connectivity", "modle"))


@pytest.mark.parametrize(
    "text",
    [
        "objects: {open_um: -1}",
        "objects: {close_um: {tumour: wide}}",
        "tiles: {block: 1000}",  # no multiple of 512
        "tiles: {block: 0}",
        "tiles: {block: 32768}",
        "tiles: {tile: 0}",
        "tiles: {tile: -16}",
        "tiles: {tile: big}",
        "tiles: {block: 2048.0}",
        'tiles: {block: "2048"}',  # a string is not a number
        'tiles: {tile: "1024"}',
        "tiles: {block: true}",
        "tiles: 2048",
        "tiles: []",
        "tiles: [block, 512]",
        "input: {mpp: 0.01}",
        "input: {mpp: 11}",
        "input: {mpp: natiev}",
        "input: {mpp: .nan}",
        'input: {mpp: "0.25"}',
        "input: {pattern: '*.svs'}",
        "input: {pattern: [1, 2]}",
        "objects: {threshold: 0}",
        "objects: {threshold: 1.5}",
        "objects: {threshold: .nan}",
        "objects: {threshold: .inf}",
        'objects: {threshold: "0.5"}',
        "objects: {connectivity: 6}",
        'objects: {connectivity: "8"}',
        "objects: {min_area_um2: -1}",
        "objects: {min_area_um2: .inf}",
        "objects: {max_area_um2: 0}",
        "compute: {device: gpu}",
        "compute: {precision: 16}",
        "outputs: {geojson: 1}",
        'outputs: {geojson: "yes"}',
        "outputs: {overview: null}",
        "cluster: {kind: slurm2}",
        "cluster: {workers: 0}",
        "cluster: {workers: 1.5}",
        "model: {weights: 3}",
        "model: {weights: null}",
    ],
)
def test_wrong_type_or_value_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    section = text.partition(":")[0]
    assert f"{section}." in str(caught.value) or f"{section}:" in str(caught.value), str(caught.value)
    assert "found" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiles: {block: 1024, tile: 512}", ("tiles", {"block": 1024, "tile": 512})),
        ("objects: {threshold: 1, min_area_um2: 3}", ("objects", {"threshold": 1.0, "min_area_um2": 3.0})),
        ("input: {pattern: ['*.a'], mpp: native}", ("input", {"pattern": ("*.a",), "mpp": "native"})),
        ("input: {mpp: 1}", ("input", {"mpp": 1.0})),
        ("outputs: {geojson: false}", ("outputs", {"geojson": False})),
    ],
)
def test_right_values_are_taken(tmp_path: Path, text: str, expected: tuple[str, dict[str, Any]]) -> None:
    section, values = expected
    found = load_config(write(tmp_path, text)).model_dump()[section]
    assert {key: found[key] for key in values} == values


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tiles: {block: 512}\ntiles: {block: 1024}\n", "'tiles' is given twice"),
        ("tiles: {block: 512, block: 1024}\n", "'block' is given twice"),
        ("a: &a [1]\nb: *a\n", "aliases are not allowed"),
        ("tiles: {block: 512\n", "not plain YAML"),
        ("\ttiles: 1\n", "not plain YAML"),
        ("- tiles\n- model\n", "expected sections"),
        ("just words\n", "expected sections"),
        ("42\n", "expected sections"),
        ("? [a, b]\n: 1\n", "not plain YAML"),
        ("tiles: 1\n---\ntiles: 2\n", "not plain YAML"),
        ("[" * 100_000, "not plain YAML"),
    ],
)
def test_text_that_is_no_configuration_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(write(tmp_path, text))


def test_python_tags_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    for tag in (
        f"!!python/object/apply:os.mkdir ['{trace}']",
        f"!!python/object/new:os.mkdir ['{trace}']",
        "!!python/name:os.system",
        "!unknown {}",
    ):
        with pytest.raises(ConfigError, match="not plain YAML"):
            load_config(write(tmp_path, f"model: {tag}\n"))
        with pytest.raises(ConfigError, match="not a YAML value"):
            load_config(None, [f"model.weights={tag}"])
    assert not trace.exists()


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    layers = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 30))
    with pytest.raises(ConfigError, match="aliases are not allowed here"):
        load_config(write(tmp_path, f"l0: &l0 [x, x]\n{layers}\n"))


def test_merge_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not plain YAML"):
        load_config(write(tmp_path, "tiles:\n  <<: {block: 512}\n  tile: 256\n"))


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"model: {weights: \xff\xfe}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read the configuration {path}"):
            load_config(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.symlink_to(path)  # a file without permission is readable to root; this one to no user
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(path)


# ---- --set ---------------------------------------------------------------------------------------------------------


def test_overrides_change_single_keys_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "tiles: {block: 512, tile: 256}\n")
    config = load_config(path, ["tiles.block=1024", "objects.threshold=0.25", "tiles.block=4096"])
    assert (config.tiles.block, config.tiles.tile) == (4096, 256), "the file's other keys stay, the last one counts"
    assert config.objects is not None
    assert config.objects.threshold == 0.25


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tissue=null", ("tissue", None)),
        ("objects=null", ("objects", None)),
        ("tiles={block: 512}", ("tiles", {"tile": "auto", "block": 512})),
        ('input.pattern=["*.a", "*.b"]', ("input", {**DEFAULTS["input"], "pattern": ("*.a", "*.b")})),
        ("model.weights=a=b.safetensors", ("model", {"weights": "a=b.safetensors", "tta": "none"})),
        (" tiles.block=512", ("tiles", {"tile": "auto", "block": 512})),
    ],
)
def test_override_takes_yaml(override: str, expected: tuple[str, Any]) -> None:
    section, values = expected
    assert load_config(None, [override]).model_dump()[section] == values


def test_section_that_was_off_is_enabled_by_one_key(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "objects: null\n"), ["objects.threshold=0.5"])
    assert config.objects is not None
    assert config.objects.threshold == 0.5


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("tiles.block", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("", "expected section.key=value"),
        ("tiles.blok=512", "did you mean 'block'"),
        ("tile.block=512", "did you mean 'tiles'"),
        ("tiles.block.deep=512", "unknown key"),
        ("tiles.block=[1", "not a YAML value"),
        ("tiles.block=*x", "not a YAML value"),
        ("tiles.block=" + "[" * 100_000, "not a YAML value"),
        ("tiles.block={a: 1, a: 2}", "not a YAML value"),
        ("tiles.block=", "tiles.block"),
        ("tiles.block=big", "tiles.block"),
    ],
)
def test_bad_override_is_refused(override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(None, [override])


def test_override_does_not_hide_a_section_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiles"):
        load_config(write(tmp_path, "tiles: [1, 2]\n"), ["tiles.block=512"])


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_gives_configuration_or_config_error(key: str, value: str) -> None:
    try:
        load_config(None, [f"{key}={value}"])
    except ConfigError:
        return


@given(st.binary(max_size=60))
def test_any_file_gives_configuration_or_config_error(content: bytes) -> None:
    path = Path("/dev/shm") / f"overtile-config-{os.getpid()}.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except ConfigError:
        pass
    finally:
        path.unlink()
