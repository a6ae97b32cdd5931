"""Errors that a user caused and can mend: one clear line, never a traceback."""

from __future__ import annotations

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NOTHING, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class UserError(Exception):
    """Bad input: the message names the file or option, the key and what is allowed."""

    exit_code = EXIT_USAGE


class NothingMeasured(UserError):
    """Valid input of which nothing can be measured or compared here."""

    exit_code = EXIT_NOTHING
