"""Contents of the wheel.

The installed files are the packages, the built-in model and the command, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY


@pytest.mark.long
def test_the_wheel_installs_and_works_from_another_folder(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("overtile-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name and ".data/" not in name}
    assert packages == {"unet_core", "pipeline", "flows"}
    assert [name.split("/", 1)[1] for name in names if ".data/" in name] == ["scripts/overtile"]
    assert any(name.startswith("unet_core/weights/nuclei@1.") for name in names)
    assert {"flows/view/static/openseadragon.min.js", "flows/templates/view_slide.html.j2"} <= set(names)
    assert {f"pipeline/rendering/fonts/DejaVuSans.{kind}" for kind in ("ttf", "LICENSE.txt")} <= set(names)

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(environment)], check=True)
    constraints = str(REPOSITORY / "constraints.txt")
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*pip, str(wheel)], check=True, cwd=tmp_path)
    overtile = str(environment / "bin" / "overtile")
    done = subprocess.run([overtile, "doctor"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nuclei@1" in done.stdout
    done = subprocess.run([overtile, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equals a single forward pass" in done.stdout
