"""The one exception for mistakes that a user can correct."""


class UserError(ValueError):
    """Bad input: the message names the file, field or flag, its value and what was expected.

    The commands in `launch/` print it as one line without a traceback.
    """
