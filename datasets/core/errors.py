"""Errors that users can cause. A message says what is wrong, where, and after `; ` the way out.

The command lines print a message as one line and exit with `exit_status`; the service maps errors to HTTP
codes in one table (`bento/errors.py`).
"""


class TilewiseError(Exception):
    """Base of all errors that a user can cause and fix."""

    exit_status = 1


class UnknownBandError(TilewiseError):
    """A band name that Sentinel-2 does not have."""


class BandsUnknownError(TilewiseError):
    """A file does not name its bands, and the user did not either."""


class RadiometryUnknownError(TilewiseError):
    """A file's processing level, scale or offset is neither in its metadata nor given by the user."""


class UnreadableImageError(TilewiseError):
    """Bytes that are not a readable image of the expected format."""


class TileShapeError(TilewiseError):
    """An image whose size, band count or data type is not what a tile must have."""


class SceneTooLargeError(TilewiseError):
    """A scene with more pixels, or more work, than the service accepts."""


class MissingBandError(TilewiseError):
    """A file without a band that the request needs."""


class NoDataError(TilewiseError):
    """A tile without any valid pixel."""


class NoTilesError(TilewiseError):
    """A folder, archive or list without any tile."""


class FetchError(TilewiseError):
    """A file could not be fetched, or is not the published one."""


class UnsafeArchiveError(TilewiseError):
    """An archive that would write outside its target or unpack to far more than allowed."""


class ValidationFailedError(TilewiseError):
    """A data set has errors that must stop the pipeline."""


class PackError(TilewiseError):
    """A pack could not be written or read."""


class CorrectionsError(TilewiseError):
    """A file of reviewed labels that cannot be read, or does not fit the tiles."""


class VersionError(TilewiseError):
    """A version of the data that cannot be read: no such revision, or bytes that no remote holds."""


class DriftError(TilewiseError):
    """Data have changed more than allowed."""


class ReviewError(TilewiseError):
    """A prediction log, a review or reviewed tiles cannot be read, or they do not fit each other."""


class PredictionsError(TilewiseError):
    """A table of a model's answers that cannot be read, or does not fit the tiles."""


class SplitError(TilewiseError):
    """A split without tiles, or tiles without a split."""


class SceneError(TilewiseError):
    """A scene, or an option for reading it, is not valid."""


class OutsideAreaError(SceneError):
    """A scene without any pixel inside the area of interest."""


class NoticeError(TilewiseError):
    """A message without a scene that this consumer may read."""


class QueueError(TilewiseError):
    """A queue that cannot be reached, or fails to send or receive messages."""


class ResultsError(TilewiseError):
    """A folder of results that cannot be used for this run."""


class FolderBusyError(ResultsError):
    """Another run writes to the folder of results."""


class ModelFileError(TilewiseError):
    """A model file that is missing, corrupt, not made by tilewise, or of another version."""


class ExportError(TilewiseError):
    """An exported model that does not give the answers of its original."""


class TrainingError(TilewiseError):
    """Training cannot start or continue with the given options."""


class StoppedError(TilewiseError):
    """Training was stopped by SIGTERM, after it saved all that a resumption needs."""

    exit_status = 143  # a shell's status for a process that SIGTERM ended
