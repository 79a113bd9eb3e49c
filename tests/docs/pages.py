"""The pages of the documentation, their code blocks, and the exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / ".github" / "docs"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
PAGES = (README, *sorted(DOCS.glob("*.md")), CONTRIBUTING)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

LINES_NOT_RUN = {
    "make ": "run by .ci/run; make test is the running test",
    "python3 -m venv": "installs; test_wheel.py does it",
    ".venv/bin/": "the commands of the make targets",
    "venv/bin/": "test_wheel.py installs the wheel and runs the command",
    "pip ": "installs; test_wheel.py builds and installs the wheel",
    "uvx ": "uv is not a dependency",
    "docker ": "needs a container runtime; test_examples.py checks the Containerfile",
    "podman ": "needs a container runtime; test_examples.py checks the Containerfile",
    "napari ": "needs a screen; test_real_slides.py proves its reader",
    "overtile view ": "runs until stopped; unit/flows/view/test_page.py opens its pages",
    "overtile schedule ": "runs until stopped; test_scheduling_example.py and unit/flows/test_scheduled_run.py run it",
    "prefect server start": "runs until stopped; unit/flows/test_work_pool.py runs it",
    "prefect worker start": "runs until stopped; unit/flows/test_work_pool.py runs it",
    "prefect automation create": "needs the id of a notification block; unit/flows/test_examples.py validates the file",
    "overtile segment slides --out results --set cluster.kind=address": "needs the scheduler; test_machines.py runs it",
    "pre-commit ": "not a dependency of the tests; its hooks are those of make lint",
}
"""Prefixes of shell lines that are not run here, each with the reason."""

BLOCKS_NOT_RUN = {
    "export DASK_CONFIG=": "scheduler and workers on other machines; test_machines.py starts the same",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING=False": "GPU workers; test_machines.py starts the same",
    "#!/bin/bash\n#SBATCH": "a SLURM job; test_slurm.py submits it",
    "importObjectsFromFile": "QuPath is not installed; the file that it opens is checked",
    'run("Bio-Formats Importer"': "Fiji is not installed; the file that it opens is checked",
    "slide -ingest-> image": "a drawing",
    "        read  +---": "a drawing",
    " level  unet_core": "a drawing",
    "one machine, 16 cores": "output; test_machines.py compares it with that of the code above",
    "PREFECT_": "settings; test_faults_security.py starts a server with them",
}
"""Prefixes of blocks that are not run here, each with the reason."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why the whole block is not run; None if it is run."""
        return next((why for start, why in BLOCKS_NOT_RUN.items() if self.text.startswith(start)), None)

    def lines(self) -> Iterator[tuple[str, str | None]]:
        """Yield the commands of a shell block, each with the reason why it is not run, or None."""
        for line in self.text.replace("\\\n", " ").splitlines():
            yield line, next((why for start, why in LINES_NOT_RUN.items() if line.startswith(start)), None)


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in order, optionally of some languages only."""
    found = [Block(page, language, text) for language, text in BLOCK.findall(page.read_text("utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def code_of(page: Path) -> str:
    """Return all text of a page that is set as code."""
    text = page.read_text("utf-8")
    return "\n".join([*(block.text for block in blocks(page)), *re.findall(r"`([^`]+)`", BLOCK.sub("", text))])


def prose_of(page: Path) -> str:
    """Return all text of a page outside of fenced blocks."""
    return BLOCK.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
