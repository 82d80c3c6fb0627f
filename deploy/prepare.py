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
    return 0


if __name__ == "__main__":
    sys.exit(main())
