"""What a command says instead of a traceback."""


class Failure(RuntimeError):
    """A command cannot go on; the message is for its user: what is wrong, and what to do."""
