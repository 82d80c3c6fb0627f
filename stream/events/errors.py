"""Why a record is refused as an event."""


class EventError(ValueError):
    """A rejected event: a code for metrics, the field, and a message with the field and its value."""

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(message)
        self.code, self.field, self.message = code, field, message


def shown(value: object) -> str:
    """ASCII text of a value for an error message, at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
