"""The one error type for mistakes of the user, known to every floor of the house."""


class UserError(ValueError):
    """A mistake that the user can mend.

    The message says what was got, what was expected and how to mend it, in one or two lines. The
    command line prints it without a traceback and leaves with exit code 2.
    """
