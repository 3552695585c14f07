"""The one error that a user's input can cause."""

from __future__ import annotations

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """Input that the user can mend: what is wrong, the value found, what is legal, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, value: object = None, legal: str | None = None, fix: str | None = None) -> None:
        """Compose the message; `what` names the key, file or option at fault."""
        lines = [what]
        if value is not None:
            lines.append(f"  found: {value}")
        if legal is not None:
            lines.append(f"  legal: {legal}")
        if fix is not None:
            lines.append(f"  to do: {fix}")
        super().__init__("\n".join(lines))
