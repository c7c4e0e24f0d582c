"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input from outside: a flag, a config field, a file, a model folder.

    The message is one line that names the argument, says what it was and what would be right.
    Launch scripts print it without a traceback and exit with status 2.
    """
