"""Click classes of the command line: commands with an example, groups that load lazily, and value types."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from stream.settings import load

FILE = click.Path(path_type=Path)


class Number(click.ParamType):
    """A number that satisfies a condition; `expected` completes the error "'x' is not ..."."""

    name = "number"

    def __init__(self, parse: Callable[[Any], float], is_allowed: Callable[[float], bool], expected: str) -> None:
        self._parse, self._is_allowed, self._expected = parse, is_allowed, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = self._parse(value)
        except ValueError:
            number = float("nan")
        if not self._is_allowed(number):
            self.fail(f"{value!r} is not {self._expected}", param, ctx)
        return number


COUNT = Number(int, lambda count: count >= 1, "a whole number above 0")
SECONDS = Number(float, lambda seconds: 0 < seconds < 1e7, "a number of seconds above 0 and below 10,000,000")


def whole(low: int, high: int) -> Number:
    return Number(int, lambda number: low <= number <= high, f"a whole number from {low} to {high}")


def real(low: float, high: float) -> Number:
    return Number(float, lambda number: low <= number <= high, f"a number from {low:g} to {high:g}")


class Command(click.Command):
    """A command with an example at the end of its help. Its function gets the settings as its first argument.

    The function returns the exit status, or None for success. A coroutine function runs in an event loop.
    """

    def __init__(self, *args: Any, example: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example

    def invoke(self, ctx: click.Context) -> int:
        """Read the settings and run the command. Raises SettingsError."""
        assert self.callback is not None
        status = ctx.invoke(self.callback, load(os.environ), **ctx.params)
        if inspect.iscoroutine(status):
            # Imported here because it takes half as long as all else that `--help` loads.
            import asyncio

            status = asyncio.run(status)
        return status or 0

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.example)


class FilesCommand(Command):
    """A command with an option --data that takes several files: `--data a.tsv b.tsv`.

    A click option takes a fixed number of values, so the option is repeated before each file.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(repeat_option("--data", args)))


def repeat_option(option: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield `arguments` with `option` before each of its values: `--data a b` becomes `--data a --data b`."""
    is_value = is_first = False
    for argument in arguments:
        if argument == option:
            is_value = is_first = True
        elif is_value and (argument == "-" or not argument.startswith("-")):
            if not is_first:
                yield option
            is_first = False
        else:
            is_value = False
        yield argument


class Group(click.Group):
    """A group of commands with an example at the end of its help."""

    command_class = Command

    def __init__(self, *args: Any, example: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.options_metavar, self.subcommand_metavar = "", "COMMAND ..."
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.example)


class LazyGroup(click.Group):
    """The top of the command line. A command's module is imported when the command runs or when its help is printed.

    sections: for each heading of the help, the commands by name, each as "module:attribute" within `package`.
    """

    def __init__(self, package: str, sections: Mapping[str, Mapping[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self.options_metavar, self.subcommand_metavar = "", "COMMAND ..."
        self._package, self._sections = package, sections
        self._places = {name: place for commands in sections.values() for name, place in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(f"{self._package}.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._places))
        for heading, names in self._sections.items():
            commands = ((name, self.get_command(ctx, name)) for name in names)
            rows = [(name.ljust(width), command.get_short_help_str(90)) for name, command in commands if command]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it is: its lines are commands to copy."""
        formatter.write_paragraph()
        for line in (self.epilog or "").splitlines():
            formatter.write(f"{line}\n")


def write_examples(formatter: click.HelpFormatter, example: str) -> None:
    lines = example.splitlines()
    with formatter.section("Examples" if len(lines) > 1 else "Example"):
        for line in lines:
            formatter.write(f"{' ' * formatter.current_indent}{line}\n")
