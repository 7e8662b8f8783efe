"""The errors that a person can act on: what was wrong, where, and the next step.

A command prints one and ends with exit code 2, without a traceback. Errors that only a programmer can act on stay
ordinary exceptions.
"""

from typing import Final

RESTORE: Final = "Restore it, or remove it and run the command that writes it again (`recsys data`, `recsys train`)."


class RecsysError(Exception):
    """A problem with the input, the state of the home folder or the surroundings, worded for the reader."""


class DataError(RecsysError):
    """The raw files are missing, broken, or say something that cannot be true."""


class ConfigError(RecsysError):
    """A setting is unknown, out of range, or contradicts another."""


class MissingArtefactError(RecsysError):
    """A stage was asked to read what an earlier stage has not written yet."""


class DamagedFileError(RecsysError, ValueError):
    """A file that this project wrote is no longer what it was."""


class BundleError(RecsysError):
    """A model bundle is incomplete, altered, or was written for another schema."""


class RegistryError(RecsysError):
    """The model registry cannot be reached or does not hold what was asked for."""


class StoreError(RecsysError):
    """A feature store read or write failed, or a join lost, doubled or reordered rows."""
