"""The errors that a person can act on.

Stage: every stage. In: nothing. Out: one exception hierarchy whose text says what was wrong, where, and
the next step; a command prints it and ends with exit code 2, without a traceback. Absent: errors that only
a programmer can act on; those stay ordinary exceptions with their traceback.
"""


class RecsysError(Exception):
    """A problem with the input, the state of the home folder or the surroundings, worded for the reader."""


class DataError(RecsysError):
    """The raw files are missing, broken, or say something that cannot be true."""


class ConfigError(RecsysError):
    """A setting is unknown, out of range, or contradicts another."""


class MissingArtefactError(RecsysError):
    """A stage was asked to read what an earlier stage has not written yet."""


class BundleError(RecsysError):
    """A model bundle is incomplete, altered, or was written for another schema."""


class RegistryError(RecsysError):
    """The model registry cannot be reached or does not hold what was asked for."""


class StoreError(RecsysError):
    """A feature store read or write failed, or a join lost, doubled or reordered rows."""
