"""Prefect automations that call a notification block when a scheduled run fails or does not start.

The server sends the notification, not the run, so that crashed runs and runs that never started are reported too, as
long as the server is up. The automations belong to the deployment: scheduling again replaces them.
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
"""Delay of a run after which it is reported as not started."""

RUN = "prefect.flow-run.*"
FAILED = ("Failed", "Crashed", "TimedOut")
STARTED = ("Pending", "Running", "Cancelled", "Skipped")
"""States after which a late run needs no notification."""

STATE = "{{ flow_run.name }}: {{ flow_run.state.name }}. {{ flow_run.state.message }}"


async def find_block(client: PrefectClient, name: str) -> UUID:
    """The id of the notification block TYPE/NAME.

    Raises:
        ConfigError: There is no notification block of that name.
    """
    kind, _, own = name.partition("/")
    try:
        block = await client.read_block_document_by_name(own, kind)
    except ObjectNotFound:
        block = None
    if block is None or block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise ConfigError(
            f"--notify {printable(name)}: expected a notification block of Prefect, such as custom-webhook/lab, "
            f"found none of that name at {client.api_url}. 'prefect block ls' lists the existing ones"
        )
    return block.id


def automations(deployment: UUID, block: UUID, out: Path, patience: timedelta = PATIENCE) -> list[AutomationCore]:
    """Automations that report a failed or crashed run of a deployment, and a run that did not start in time."""
    owner, name = f"prefect.deployment.{deployment}", printable(out.name)
    about = {
        "match": {"prefect.resource.id": RUN},
        "match_related": {"prefect.resource.id": owner, "prefect.resource.role": "deployment"},
        "for_each": {"prefect.resource.id"},
    }
    failed = EventTrigger.model_validate({**about, "expect": {f"prefect.flow-run.{state}" for state in FAILED}})
    absent = EventTrigger.model_validate(
        {
            **about,
            "posture": Posture.Proactive,
            "after": {"prefect.flow-run.Late"},
            "expect": {f"prefect.flow-run.{state}" for state in STARTED},
            "within": patience,
        }
    )
    command = _quoted(f"overtile status {shlex.quote(printable(str(out)))} --failed")
    messages = (
        (failed, f"{name}: a scheduled run failed", f"{STATE}\nSlides, causes and remedies: {command}"),
        (absent, f"{name}: a scheduled run did not start", f"{STATE}\nAre the machine and its schedule running?"),
    )
    return [
        AutomationCore(
            name=f"{subject} ({str(deployment)[:8]})",
            trigger=trigger,
            actions=[SendNotification(block_document_id=block, subject=_quoted(f"overtile: {subject}"), body=body)],
            owner_resource=owner,
        )
        for trigger, subject, body in messages
    ]


def _quoted(text: str) -> str:
    """Text quoted for Prefect's notification templates, which are Jinja templates."""
    return f"{{{{ {json.dumps(text)} }}}}"
