"""Real slides with bytes changed at random.

Each slide is completed or named in one error line, and the run ends.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.commands import Command, is_complete

SEED = 43
ROUNDS = 30
SLIDES = ("OS-1-detail.ome.tif", "OS-2-vsi.ome.tif", "OS-2-ndpi.ome.tif", "CMU-1-Small-Region.svs")


def mutate(data: bytearray, generator: random.Random) -> bytes:
    """Change single bytes, a run of bytes, the end, or the offsets of the file."""
    at = generator.randrange(8, len(data))
    match generator.choice(("bytes", "head", "zeros", "noise", "cut", "moved")):
        case "bytes":
            for _ in range(generator.randint(1, 8)):
                data[generator.randrange(8, len(data))] = generator.randrange(256)
        case "head":
            for _ in range(generator.randint(1, 4)):
                data[generator.randrange(4, 600)] = generator.choice([0, 1, 0x7F, 0xFF, generator.randrange(256)])
        case "zeros":
            length = generator.randint(1, 4000)
            data[at : at + length] = bytes(len(data[at : at + length]))
        case "noise":
            length = generator.randint(1, 4000)
            data[at : at + length] = generator.randbytes(len(data[at : at + length]))
        case "cut":
            del data[at:]
        case "moved":
            del data[at : at + generator.randint(1, 16)]
    return bytes(data)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fault_42_43_mutated_real_slides_end_as_results_or_by_name(
    overtile: Command, shared_data: Path, tmp_path: Path
) -> None:
    """Slides are read in child processes, as untrusted slides are; one that kills its process is named."""
    print(f"seed {SEED}")
    generator = random.Random(SEED)
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for number in range(ROUNDS):
        real = shared_data / "wsi" / SLIDES[number % len(SLIDES)]
        suffix = ".svs" if real.suffix == ".svs" else ".ome.tif"
        (slides / f"m{number:02}{suffix}").write_bytes(mutate(bytearray(real.read_bytes()), generator))
    ran = overtile.segment(
        slides,
        out,
        "cluster.kind=local",
        "cluster.workers=2",
        "tiles.block=2048",
        "--mpp",
        "0.5",
        "outputs.overview=false",
    )
    assert ran.code in (0, 3, 4), ran.transcript
    assert "Traceback" not in ran.transcript
    states = ran.states()
    assert len(states) == ROUNDS
    for key, state in states.items():
        assert state in ("complete", "failed"), key
        assert is_complete(out / key) == (state == "complete")
        if state == "failed":
            assert f"{key}." in ran.error_of(key), "the error names the file"
    failed = list(states.values()).count("failed")
    print(f"{failed} of {ROUNDS} refused")
    assert failed > ROUNDS // 5
    assert len(ran.errors) == failed == ran.stderr.count("\n")
