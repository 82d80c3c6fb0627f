"""The command line. Each command reads the settings once; every error is one sentence that says what to do."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence

import click
from click.exceptions import Exit, NoArgsIsHelpError

from deploy.cli.command import LazyGroup
from stream.logs import say
from stream.settings import SettingsError

PROGRAM = "shopwindow"
# Set by the completion script that click generates. Without the underscore it would be an unknown setting.
COMPLETION_VARIABLE = "_SHOPWINDOW_COMPLETE"
MEMORY_REMEDY = "free some, or raise the limit of this process (ulimit -v, the container's)"
SECTIONS = {
    "Run": {
        "demo": "run:demo",
        "broker": "run:broker",
        "worker": "run:worker",
        "topics": "topics:topics",
    },
    "Send and read data": {
        "catalog": "data:catalog",
        "send": "data:send",
        "replay": "data:replay",
        "replay-diff": "data:replay_diff",
        "watch": "data:watch",
        "profiles": "data:profiles",
    },
    "Operate": {
        "status": "operate:status",
        "dead-letters": "operate:dead_letters",
    },
    "Models": {
        "train": "models:train",
        "evaluate": "models:evaluate",
        "models": "models:models",
        "copy": "models:copy",
        "export": "models:export",
    },
    "Measure and look up": {
        "bench": "bench:bench",
        "settings": "reference:settings",
        "metrics": "reference:metrics",
        "schemas": "reference:schemas",
    },
}
EPILOG = """\
Example:
  shopwindow demo --seconds 30

Shell completion, a line for the start file of your shell:
  bash  eval "$(_SHOPWINDOW_COMPLETE=bash_source shopwindow)"
  zsh   eval "$(_SHOPWINDOW_COMPLETE=zsh_source shopwindow)"
  fish  _SHOPWINDOW_COMPLETE=fish_source shopwindow | source

`shopwindow COMMAND --help` explains a command and shows an example."""

shopwindow = LazyGroup(
    "deploy.cli",
    SECTIONS,
    name=PROGRAM,
    help="Keep every shopper's homepage personal in real time.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 a failure or refused input, 2 a usage error or a bad setting, 130 an interruption by Ctrl-C.
    """
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(shopwindow, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    # A Kafka client retries all the time. A failure that retries do not mend is raised, so that its lines are shown by
    # a worker alone, which has its own handlers. A logger without any handler would print to stderr.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    arguments = list(sys.argv[1:] if argv is None else argv)
    command_line = shlex.join([PROGRAM, *arguments])
    try:
        with shopwindow.make_context(PROGRAM, arguments, obj=command_line) as context:
            status: int = shopwindow.invoke(context)
            return status
    except Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our stdout has closed it, as `| head` does. Python must not complain about it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        say(_usage_error(error))
        return error.exit_code
    except SettingsError as error:
        for line in str(error).splitlines():
            say(line)
        return 2
    except (ValueError, RuntimeError, OSError, LookupError) as error:
        # All our errors derive from these: BrokerError, NoBroker, WrongTopics, ManifestError, InputError.
        say(_sentence(error))
        return 1
    except MemoryError:
        say(f"there is not enough memory; {MEMORY_REMEDY}")
        return 1
    except ImportError as error:
        say(f"a library cannot be loaded ({error}); install it again (make setup); if memory is short, {MEMORY_REMEDY}")
        return 1


def _sentence(error: Exception) -> str:
    """The message of an error; with what to do, if a library raised it."""
    if type(error).__module__.startswith("aiokafka."):
        return f"Kafka did not do what was asked ({error}); check that it runs, and its log"
    if isinstance(error, TimeoutError) and not str(error):
        return "Kafka did not answer in time; check that it runs, its load and the network"
    return str(error) or type(error).__name__


def _usage_error(error: click.ClickException) -> str:
    """Return click's message on one line, and the help that explains the command."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = PROGRAM if context is None else context.command_path
    return f"{message[0].lower()}{message[1:]}; see `{command} --help`"
