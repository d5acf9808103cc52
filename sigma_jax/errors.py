"""The one exception for everything a user can cause; scripts print its text and exit with status 2."""


class UserError(ValueError):
    """A wrong path, shape, unit, version, setting or file: says what was expected, what came, what to do next."""
