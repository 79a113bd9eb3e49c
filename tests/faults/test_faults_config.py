"""Invalid configuration.

It is refused in one line, before anything is imported, read or written.
"""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import Command, installed_command

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "unknown_key": ("tiles: {blok: 512}\n", "unknown key 'tiles.blok': did you mean 'block'?"),
    "unknown_section": ("tile: {block: 512}\n", "unknown key 'tile': did you mean 'tiles'?"),
    "duplicate_key": ("tiles: {block: 512, block: 1024}\n", "key 'block' is given twice"),
    "wrong_type": ("tiles: {block: big}\n", "tiles.block: Input should be a valid integer, found 'big'"),
    "number_as_text": ("tiles: {block: '512'}\n", "tiles.block: Input should be a valid integer, found '512'"),
    "not_a_number": ("objects: {min_area_um2: .nan}\n", "objects.min_area_um2: Input should be a finite number"),
    "python_tag": ("tiles: !!python/object/apply:os.system ['touch witness']\n", "not plain YAML"),
    "alias_bomb": (BOMB, "aliases are not allowed here"),
    "nested_too_deep": ("[" * 50_000, "not plain YAML"),
    "no_mapping": ("- tiles\n", "expected sections such as 'tiles:', found list"),
    "not_text": ("\udcff\udcfe", "not plain YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_fault_60_bad_yaml_is_refused_with_one_line(overtile_alone: Command, tmp_path: Path, name: str) -> None:
    text, phrase = BAD[name]
    config = tmp_path / "config.yaml"
    config.write_bytes(text.encode(errors="surrogateescape"))
    ran = overtile_alone.run("segment", "slide.tif", "--out", tmp_path / "out", "--config", config)
    assert ran.code == 2, ran.transcript
    assert phrase in ran.only_error
    assert str(config) in ran.only_error
    assert not (tmp_path / "out").exists()
    assert not list(overtile_alone.folder.iterdir()), "no payload ran in the working folder"


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--set", "objects.treshold=0.4"], "did you mean 'threshold'?"),
        (["--set", "objects.threshold=1.5"], "objects.threshold: Input should be less than or equal to 1"),
        (["--set", "objects"], "expected section.key=value"),
        (["--mpp", "quick"], "input.mpp"),
        (["--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
    ],
    ids=["misspelt", "out_of_range", "no_value", "no_resolution", "no_file"],
)
def test_fault_60_bad_options_are_refused_with_one_line(
    overtile_alone: Command, tmp_path: Path, arguments: list[str], phrase: str
) -> None:
    ran = overtile_alone.run("segment", "slide.tif", "--out", tmp_path / "out", *arguments)
    assert ran.code == 2, ran.transcript
    assert phrase in ran.only_error
    assert not (tmp_path / "out").exists()


def test_fault_60_an_alias_bomb_costs_no_memory(overtile_alone: Command, tmp_path: Path) -> None:
    """Expanded, it would hold 9**9 items; this process may use only a few hundred MB."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    line = [*installed_command(), "segment", "slide.tif", "--out", "out", "--config", str(tmp_path / "bomb.yaml")]
    limit = 700 << 20
    done = subprocess.run(
        line,
        env=dict(overtile_alone.environment),
        cwd=overtile_alone.folder,
        capture_output=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr.decode()
    assert b"aliases are not allowed here" in done.stderr
