"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake of the user's or of their files: one line that says what, where and how to mend it.

    The command line prints it without a traceback and ends with exit code 2.
    """
