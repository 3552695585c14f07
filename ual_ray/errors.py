"""The one error that user input can cause, and the kind of it that other settings of a training can cure."""

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """Invalid user input: what is wrong, the value, what is expected, and how to fix it.

    The command line prints the message without a traceback and exits with USER_ERROR_EXIT_CODE.
    """

    def __init__(self, what: str, *, got: object = None, expected: str | None = None, fix: str | None = None) -> None:
        """Compose the message, one line per part; `what` names the key, file or option. None leaves a part out."""
        parts = (("got", got), ("expected", expected), ("fix", fix))
        super().__init__("\n".join([what, *(f"  {label}: {part}" for label, part in parts if part is not None)]))


class DivergedError(UserError):
    """A training whose loss or gradient is not finite: with another learning rate it may be."""
