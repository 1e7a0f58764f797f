"""Errors that speak to the user: one line that says what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Bad input. The command line prints the message alone, without a traceback, and exits with code 2."""


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite; the message names the step and the batch. The run's status is `failed`."""
