"""The part of the set-up that comes after the packages: Kafka's jars, compiled kernels. Run by `make setup`."""

import sys

from deploy.broker import BrokerError, prepare


def main() -> int:
    def say(line: str) -> None:
        print(f"shopwindow: {line}", file=sys.stderr, flush=True)

    try:
        prepare(say)
    except BrokerError as error:
        say(str(error))
        return 1
    say("compiling the kernels (once; half a minute)")
    from models.copybook import CopyBook
    from models.history import History
    from models.path import PagePath, Policy, warm
    from models.ranker import Ranker
    from stream.catalog import Catalog
    from stream.settings import SHIPPED_MODELS
    from stream.signals import Signals

    catalog = Catalog()
    history = History(SHIPPED_MODELS / "history", catalog)
    warm(PagePath(catalog, Signals(catalog), Ranker(SHIPPED_MODELS / "ranker"), CopyBook(), Policy(), history))
    return 0


if __name__ == "__main__":
    sys.exit(main())
