"""Names and prefixes of names, as settings list them: `a,b,c*`."""

from collections.abc import Iterable


class NamePatterns:
    """A set of names; an entry may end in `*`, and then stands for all names with that prefix."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        names = {entry for entry in entries if entry}
        self._names = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(sorted(name[:-1] for name in names if name.endswith("*")))

    def __bool__(self) -> bool:
        return bool(self._names or self._prefixes)

    def match(self, name: str) -> str | None:
        """The entry that matches a name; None if no entry does."""
        if name in self._names:
            return name
        return next((prefix + "*" for prefix in self._prefixes if name.startswith(prefix)), None)


def name_patterns(setting: str) -> NamePatterns:
    """The patterns of a setting, which has commas between them."""
    return NamePatterns(setting.split(","))


NO_NAMES = NamePatterns()
