"""hypothesis-jsonschema with the installed version of Hypothesis."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from hypothesis.internal.conjecture import utils
from hypothesis_jsonschema import _from_schema
from hypothesis_jsonschema import from_schema as from_schema


class _Many(utils.many):
    """Hypothesis's counter of elements, with the method that hypothesis-jsonschema 0.23 calls: `more`."""

    _elements: Iterator[None] | None = None

    def more(self) -> bool:
        if self._elements is None:
            self._elements = iter(self.__enter__())
        return next(self._elements, self) is None


if not hasattr(utils.many, "more"):
    module: Any = _from_schema
    module.cu = SimpleNamespace(many=_Many)
