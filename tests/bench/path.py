"""Where the time of a page goes, stage by stage, and what batching gains over one event at a time.

python -m tests.bench.path
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from statistics import median

import numpy as np

from deploy.demo.shop import generate_shop
from deploy.demo.shoppers import Shelves, Shopper
from models.copybook import CopyBook
from models.path import PagePath, Policy, warm
from models.ranker import Ranker
from stream.catalog import Catalog
from stream.events import decode_run
from stream.settings import SHIPPED_MODELS
from stream.signals import ItemTable, Signals

NOW = 1_767_225_600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each size (default 40)")
    rounds = parser.parse_args().rounds
    shop = generate_shop(1, now=NOW)
    shelves, catalog = Shelves(shop), Catalog()
    catalog.apply([(item["item_id"].encode(), json.dumps(item).encode()) for item in shop])
    signals, table = Signals(catalog), ItemTable()
    path = PagePath(catalog, signals, Ranker(SHIPPED_MODELS / "ranker"), CopyBook(), Policy(copy=False))
    warm(path)
    people = [Shopper(1, number, shelves) for number in range(400)]
    stored: dict[bytes, bytes] = {}
    offset = turn = 0

    def records(n: int) -> list[tuple[bytes, bytes]]:
        nonlocal turn
        made: list[tuple[bytes, bytes]] = []
        while len(made) < n:
            person = people[turn % len(people)]
            turn += 1
            made += [
                (person.key.encode(), json.dumps(e).encode())
                for e in person.look(None, NOW + turn)
                if e["type"] != "purchase"
            ]
        return made[:n]

    print(f"{'events':>7} {'us/event':>9} {'us/page':>9} {'pages/s':>9} {'gain':>6}   us a page by stage")
    baseline = None
    for size in (1, 32, 256):
        seconds, pages, stages = [], 0, defaultdict(list)
        for _ in range(rounds + 3):
            batch = records(size)
            start = time.perf_counter()
            decoded = decode_run([v for _, v in batch], [k for k, _ in batch], [NOW + 1e6] * size, "clicks")
            decode = time.perf_counter() - start
            step = path.step(stored, decoded, np.arange(offset, offset + size), NOW + turn)
            spent = time.perf_counter() - start
            offset += size
            stored.update((key, value) for key, value in step.changelog if value is not None)
            signals.apply(table.records(table.fold("clicks", 0, step.activity)))
            seconds.append(spent / len(step.pages))
            pages += len(step.pages)
            for stage, value in {"decode": decode, **step.seconds}.items():
                stages[stage].append(value / len(step.pages))
        page = median(seconds[3:])
        baseline = baseline or page
        told = "  ".join(f"{stage} {median(values[3:]) * 1e6:.0f}" for stage, values in stages.items())
        per_event = page * pages / (size * (rounds + 3))
        print(f"{size:7d} {per_event * 1e6:9.0f} {page * 1e6:9.0f} {1 / page:9.0f} {baseline / page:5.1f}x   {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
