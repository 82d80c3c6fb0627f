"""The storefront example of the README runs as printed."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from stream.kafka import topics
from tests.harness.counting import scenario, send
from tests.harness.shop import item
from tests.harness.worker_process import ROOT, clicks, environ_of, settings_for, worker

README = (ROOT / "README.md").read_text()


@scenario
async def test_the_storefront_example_prints_pages(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    match = re.search(r"```python\n(.*?)```", README, re.S)
    assert match is not None
    program = tmp_path / "storefront.py"
    program.write_text(match.group(1))
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [item(f"i{k}") for k in range(20)])
    await send(settings, "clicks", clicks(10, 1))
    with worker(settings):
        storefront = subprocess.Popen(
            [sys.executable, str(program)], env=environ_of(settings), stdout=subprocess.PIPE, text=True
        )
        assert storefront.stdout is not None
        line = await asyncio.to_thread(storefront.stdout.readline)
        storefront.kill()
        storefront.wait()
    assert line.startswith("u0 ") and "i" in line
