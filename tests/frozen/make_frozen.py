"""Make the files of tests/frozen: results, a training and a schedule of the installed command, at one commit.

    python -m tests.frozen.make_frozen

The script runs the installed command `overtile` in /tmp/overtile-frozen and imports no module of the product. The name
of the computer is replaced by "elsewhere"; the checksum of each manifest is then computed again. Archives have sorted
names and fixed times and owners. Run the script only when a format changes on purpose: the files then say what the code
of the new commit writes, and no longer what the code of the earlier commit wrote.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tests.support.make_dicom import write_dicom

FROZEN = Path(__file__).parent
ROOT = Path("/tmp/overtile-frozen")
COMMAND = str(Path(sys.executable).parent / "overtile")
ARCHIVE_TIME = 1_767_225_600  # 2026-01-01: older than any lock that another computer may hold
MODELS = ("nuclei@1", "nuclei@2", "nuclei-fluorescence@1")
FINISHED = ("best.safetensors", "last.safetensors", "metrics.jsonl", "resume.safetensors")
"""Files that are kept of the training that ran to its end."""
STOP_AFTER = 32
"""Steps after which the training is killed: the checkpoint is of step 25."""

SEGMENT = ["segment", "slides", "--out", "out", "--cases", "tables/cases.csv", "--model", "nuclei@2"]
TRAIN = ["train", "--images", "images", "--masks", "masks", "--cases", "cases.csv", "--steps", "60"]
SCHEDULE = ["schedule", "slides", "--out", "out", "--cron", "30 2 * * 1-5", "--timezone", "Europe/Berlin"]
SCHEDULE += ["--until", "07:15", "--set", "model.weights=nuclei@2", "--set", "input.cases=tables/cases.csv"]
RUN_SETTINGS = ["cluster.kind=serial", "tiles.block=512", "compute.precision=fp32", "compute.device=cpu"]
RUN_SETTINGS += ["objects.split=watershed", "objects.open_um=0.5", "tissue.min_area_um2=100.0"]
TRAIN_SETTINGS = ["network.depth=1", "network.width=2", "network.dropout=0.5", "sampling.batch=2"]
TRAIN_SETTINGS += ["sampling.output_px=32", "stopping.every=25", "schedule.warmup=5", "compute.precision=fp32"]
TRAIN_SETTINGS += ["compute.device=cpu", "compute.threads=1", "data.classes=[disc]"]

CASES = """slide,model,mpp,regions,priority,patient,stain
photo.png,nuclei@1,,,2,patient 7,"H&E, weak"
cells.jpg,nuclei-fluorescence@1,0.9,,,,DAPI
tissue.tif,,,,1,patient 7,H&E
series,,,,-2,patient 8,H&E
deep/drawn,,native,regions/drawn.geojson,-1,,H&E
"""


def with_settings(words: list[str], settings: list[str]) -> list[str]:
    """The words of a command, each setting behind `--set`."""
    return [*words, *(word for one in settings for word in ("--set", one))]


# ---- inputs ----------------------------------------------------------------------------------------------------------


def nuclei(shape_yx: tuple[int, int], seed: int, period_px: int) -> NDArray[np.float64]:
    """Darkness 0..1 of blurred ellipses, some of which touch, on a jittered grid; (y, x)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape_yx[0], 0 : shape_yx[1]].astype(np.float64)
    found = np.zeros(shape_yx)
    for cy in range(period_px // 2, shape_yx[0], period_px):
        for cx in range(period_px // 2, shape_yx[1], period_px):
            dy, dx = generator.integers(-period_px // 4, period_px // 4 + 1, 2)
            a, b = generator.uniform(0.2, 0.36, 2) * period_px
            found[((y - cy - dy) / a) ** 2 + ((x - cx - dx) / b) ** 2 < 1] = generator.uniform(0.7, 1.0)
    return np.asarray(ndimage.gaussian_filter(found, period_px / 24))


def stained(shape_yx: tuple[int, int], seed: int, period_px: int) -> NDArray[np.uint8]:
    """Pink tissue with purple nuclei and a margin of glass on the right; (y, x, 3)."""
    dark = nuclei(shape_yx, seed, period_px)[..., None]
    image = np.array([226, 172, 206]) * (1 - dark) + np.array([98, 62, 142]) * dark
    image[:, int(0.88 * shape_yx[1]) :] = 244
    return np.asarray(image.round().clip(0, 255), np.uint8)


def write_slides(root: Path) -> None:
    """Write slides of five kinds, the cases table and a file of regions.

    The slides are a TIFF that is resampled, a TIFF without a resolution, a PNG photo, a JPEG photo and a DICOM series.
    One more photo is left out of the cases table.
    """
    slides, options = root / "slides", {"photometric": "rgb", "compression": "deflate", "metadata": None}
    options |= {"software": False, "tile": (256, 256)}
    (slides / "deep").mkdir(parents=True)
    (root / "tables" / "regions").mkdir(parents=True)
    scale = {"resolution": (1e4 / 0.2, 1e4 / 0.2), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(slides / "tissue.tif", stained((700, 1000), 1, 60), **options, **scale)
    tifffile.imwrite(slides / "deep" / "drawn.tif", stained((300, 620), 2, 44), **options)
    dots_per_inch = 25400 / 0.25
    Image.fromarray(stained((200, 580), 3, 48)).save(slides / "photo.png", dpi=(dots_per_inch, dots_per_inch))
    write_dicom(slides / "series", stained((150, 330), 5, 44), mpp=0.25)
    grey = (18 + 200 * nuclei((260, 300), 4, 30)).round().astype(np.uint8)
    Image.fromarray(grey).save(slides / "cells.jpg", quality=92)
    Image.fromarray(grey).save(slides / "not-asked.png")
    (root / "tables" / "cases.csv").write_text(CASES)
    rings = {
        "left": [[20, 20], [260, 30], [150, 280], [20, 20]],
        "right": [[300, 0], [560, 0], [560, 299], [300, 299], [300, 0]],
    }
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "name": name},
        }
        for name, ring in rings.items()
    ]
    drawn = {"type": "FeatureCollection", "features": features}
    (root / "tables" / "regions" / "drawn.geojson").write_text(json.dumps(drawn))


def write_annotated(root: Path) -> None:
    """Six images of dark discs, masks that number the discs, and a table of patients and folds."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    y, x = np.mgrid[0:64, 0:80]
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "fold"])
        for seed in range(6):
            generator = np.random.default_rng(seed)
            labels = np.zeros((64, 80), np.uint16)
            for number in range(1, 13):
                cy, cx = generator.integers(0, 64), generator.integers(0, 80)
                labels[((y - cy) ** 2 + (x - cx) ** 2 < 36) & (labels == 0)] = number
            image = np.where(labels[..., None] > 0, (90, 60, 140), (230, 170, 200)) + generator.normal(
                0, 8, (64, 80, 3)
            )
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{seed}.png")
            Image.fromarray(labels).save(root / "masks" / f"{seed}.png")
            writer.writerow([f"{seed}.png", f"p{seed}", seed % 3])


# ---- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def started(words: list[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, killed at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "OVERTILE_"))}
    environment = kept | {"PREFECT_HOME": str(ROOT / "prefect"), "COLUMNS": "200"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [COMMAND, *words], cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(words: list[str], folder: Path) -> str:
    """Run the command to its end; return its output. Exit when the command fails."""
    log = ROOT / "log"
    with started(words, folder, log) as process:
        if process.wait():
            sys.exit(f"{words}:\n{log.read_text()}")
    return log.read_text()


def stopped_training(folder: Path) -> None:
    """Train and kill the whole process group between two checkpoints."""
    record = folder / "stopped" / "metrics.jsonl"
    with started(with_settings([*TRAIN, "--out", "stopped"], TRAIN_SETTINGS), folder, ROOT / "log") as process:
        while not record.exists() or record.read_bytes().count(b'"gradient_norms"') < STOP_AFTER:
            if process.poll() is not None:
                sys.exit(f"the training ended before it was killed:\n{(ROOT / 'log').read_text()}")
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)


def registered(folder: Path) -> dict[str, Any]:
    """The deployment that `overtile schedule` registers, as the Prefect server returns it."""
    log = ROOT / "schedule.log"
    words = with_settings(SCHEDULE, RUN_SETTINGS)
    with started(words, folder, log) as process:
        while not (lines := [line for line in log.read_text().splitlines() if "runs are shown at" in line]):
            if process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.1)
        api = f"{lines[0].rpartition(' ')[2]}api"
        flow_names = {flow["id"]: flow["name"] for flow in ask(api, "flows/filter")}
        (deployment,) = ask(api, "deployments/filter")
        time.sleep(5)  # until then the command has no handler of its own for the signal
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    limit = deployment["global_concurrency_limit"]["limit"]
    kept = ("name", "entrypoint", "parameters", "concurrency_options")
    return {
        "command": ["overtile", *words],
        "folder": str(folder),
        "flow": flow_names[deployment["flow_id"]],
        "schedule": deployment["schedules"][0]["schedule"],
        "concurrency_limit": limit,
        **{key: deployment[key] for key in kept},
    }


def ask(api: str, path: str) -> Any:
    """The JSON answer of the Prefect server to an empty filter."""
    request = urllib.request.Request(f"{api}/{path}", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def models() -> dict[str, Any]:
    """What `overtile model info` reports for each built-in model, without the path and the sentence of its card."""
    found = {name: json.loads(run(["model", "info", name, "--json"], ROOT)) for name in MODELS}
    return {name: {key: one[key] for key in one if key not in ("file", "about")} for name, one in found.items()}


# ---- files -----------------------------------------------------------------------------------------------------------


def anonymise(root: Path) -> None:
    """Replace the computer's name and the command's folder in JSON files, and compute checksums of manifests again."""
    host = socket.gethostname()
    for path in sorted(root.rglob("*")):
        if path.is_file() and (path.suffix in (".json", ".jsonl") or path.name == "lock"):
            data = path.read_bytes().replace(COMMAND.encode(), b"overtile")
            path.write_bytes(data.replace(f'"{host}"'.encode(), b'"elsewhere"'))
        if path.name == "manifest.json":
            content = json.loads(path.read_bytes())
            del content["sha256"]
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
            content["sha256"] = hashlib.sha256(canonical).hexdigest()
            path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        if f".{host}." in path.name:
            path.rename(path.with_name(path.name.replace(f".{host}.", ".elsewhere.")))


def archive(folder: Path, target: Path) -> None:
    """Pack a folder: sorted names, fixed times, owners and permissions."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = ARCHIVE_TIME, 0, 0, "", ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with tarfile.open(target, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=plain)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def cpu_kind() -> dict[str, str]:
    """What network arithmetic depends on: instruction set, processor and release of torch."""
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": version("torch").partition("+")[0],
    }


def main() -> None:
    """Make every file beside this script."""
    shutil.rmtree(ROOT, ignore_errors=True)
    segmented, trained = ROOT / "segmented", ROOT / "trained"
    write_slides(segmented)
    write_annotated(trained)
    write_json(FROZEN / "models.json", models())
    run(with_settings(SEGMENT, RUN_SETTINGS), segmented)
    run(with_settings([*TRAIN, "--out", "finished"], TRAIN_SETTINGS), trained)
    stopped_training(trained)
    for path in (trained / "finished").iterdir():
        if path.name not in FINISHED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in (segmented, trained):
        anonymise(folder)
        archive(folder, FROZEN / f"{folder.name}.tar.xz")
    write_json(FROZEN / "deployment.json", registered(segmented))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=FROZEN, capture_output=True, text=True, check=True)
    commands = {
        "segment": ["overtile", *with_settings(SEGMENT, RUN_SETTINGS)],
        "train": ["overtile", *with_settings(TRAIN, TRAIN_SETTINGS)],
    }
    write_json(FROZEN / "made.json", {"commit": commit.stdout.strip(), "commands": commands, "cpu": cpu_kind()})


if __name__ == "__main__":
    main()
