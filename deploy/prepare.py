"""The last step of `make setup`, after the packages: download Kafka's jars and compile the kernels."""

import sys

from deploy.broker.jars import BrokerError, ensure_kafka
from stream.logs import say


def main() -> int:
    try:
        ensure_kafka(say)
    except BrokerError as error:
        say(str(error))
        return 1
    say("compiling the kernels (once; half a minute)")
    from agents.page.headline_cache import HeadlineCache
    from agents.page.path import PagePath, Policy, warm_up
    from models.history.model import History
    from models.ranker.model import Ranker
    from stream.items.catalog import Catalog
    from stream.items.signals import Signals
    from stream.kafka.client import record_batch
    from stream.kafka.keys import partitioner
    from stream.settings import SHIPPED_MODELS

    catalog = Catalog()
    history = History(SHIPPED_MODELS / "history", catalog)
    warm_up(PagePath(catalog, Signals(catalog), Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(), history))
    record_batch.warm()
    partitioner.warm()
    return 0


if __name__ == "__main__":
    sys.exit(main())
