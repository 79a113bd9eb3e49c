"""Workers that only wait, many in one process.

They simulate many machines on few cores. python tests/benchmarks/support/napping.py ADDRESS WORKERS
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack

from distributed import Worker

from pipeline.execution.blocks import Counts
from pipeline.storage.slide_store import Index


def nap(seconds: float, _index: Index) -> Counts:
    """Wait, as a block whose work uses no processor."""
    time.sleep(seconds)
    return {"blocks": 1}


async def serve(address: str, workers: int) -> None:
    """Run workers of one thread each until the scheduler ends."""
    async with AsyncExitStack() as stack:
        settings = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": 0, "dashboard": False, "silence_logs": 50}
        started = [Worker(address, name=f"napping-{number}", **settings) for number in range(workers)]
        await asyncio.gather(*map(stack.enter_async_context, started))
        await asyncio.gather(*(worker.finished() for worker in started))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
