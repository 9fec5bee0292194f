"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake in the input, said in one line with the values and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
