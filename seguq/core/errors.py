"""The errors that seguq raises for a user's mistake: one sentence that says what, where, and what to do."""


class SeguqError(ValueError):
    """A mistake in the data, files or arguments that seguq was given; its message is one sentence for a person."""


class UsageError(SeguqError):
    """A command or call was used wrongly (a missing file, a wrong option); the command line exits with 2."""
