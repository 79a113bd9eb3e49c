"""Who is told when a night went wrong: two automations of Prefect's, which write to one of its notification blocks.

The one decision made here: the server tells, never the night. So a night that died is told of too, and one that never
began, for as long as the server lives. They belong to the deployment: scheduling again replaces them.
"""

from __future__ import annotations

import json
import shlex
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from pipeline.errors import ConfigError
from pipeline.printable import printable

PATIENCE = timedelta(minutes=10)
"""So much later than it was due may a night begin before somebody is told."""

NIGHT = "prefect.flow-run.*"
WRONG = ("Failed", "Crashed", "TimedOut")
BEGUN = ("Pending", "Running", "Cancelled", "Skipped")
"""States that say that somebody took care of a night that was late."""

STATE = "{{ flow_run.name }}: {{ flow_run.state.name }}. {{ flow_run.state.message }}"


async def find_block(client: PrefectClient, name: str) -> UUID:
    """The notification block of that name, TYPE/NAME. Raises ConfigError when there is none."""
    kind, _, own = name.partition("/")
    try:
        block = await client.read_block_document_by_name(own, kind)
    except ObjectNotFound:
        block = None
    if block is None or block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise ConfigError(
            f"--notify {printable(name)}: expected a notification block of Prefect's, such as custom-webhook/lab, and "
            f"found none of that name at {client.api_url}. 'prefect block ls' names those there are"
        )
    return block.id


def automations(deployment: UUID, block: UUID, out: Path, patience: timedelta = PATIENCE) -> list[AutomationCore]:
    """Tell when a night of a deployment failed or died, and when one that was due did not begin."""
    owner, name = f"prefect.deployment.{deployment}", printable(out.name)
    about = {
        "match": {"prefect.resource.id": NIGHT},
        "match_related": {"prefect.resource.id": owner, "prefect.resource.role": "deployment"},
        "for_each": {"prefect.resource.id"},
    }
    wrong = EventTrigger.model_validate({**about, "expect": {f"prefect.flow-run.{state}" for state in WRONG}})
    absent = EventTrigger.model_validate(
        {
            **about,
            "posture": Posture.Proactive,
            "after": {"prefect.flow-run.Late"},
            "expect": {f"prefect.flow-run.{state}" for state in BEGUN},
            "within": patience,
        }
    )
    cure = _quoted(f"overtile status {shlex.quote(printable(str(out)))} --failed")
    told = (
        (wrong, f"{name}: a night went wrong", f"{STATE}\nWhich slides, why, and what to do: {cure}"),
        (absent, f"{name}: a night did not begin", f"{STATE}\nDoes the machine run, and the schedule on it?"),
    )
    return [
        AutomationCore(
            name=f"{subject} ({str(deployment)[:8]})",
            trigger=trigger,
            actions=[SendNotification(block_document_id=block, subject=_quoted(f"overtile: {subject}"), body=body)],
            owner_resource=owner,
        )
        for trigger, subject, body in told
    ]


def _quoted(text: str) -> str:
    """Text that stays text in a template of Prefect's, which is one of Jinja's."""
    return f"{{{{ {json.dumps(text)} }}}}"
