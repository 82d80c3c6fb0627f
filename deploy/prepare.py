"""The part of the set-up that comes after the packages: Kafka's jars, compiled kernels. Run by `make setup`."""

import sys

from deploy.broker.embedded import BrokerError, prepare


def main() -> int:
    def say(line: str) -> None:
        print(f"shopwindow: {line}", file=sys.stderr, flush=True)

    try:
        prepare(say)
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
    from stream.settings import SHIPPED_MODELS

    catalog = Catalog()
    history = History(SHIPPED_MODELS / "history", catalog)
    warm_up(PagePath(catalog, Signals(catalog), Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(), history))
    return 0


if __name__ == "__main__":
    sys.exit(main())
