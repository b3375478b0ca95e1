"""Every error that tilewise raises on purpose. Each says what is wrong, where, and the way out.

The command lines print them as one line and exit with `exit_status`; the service has one table that maps
them to HTTP codes (`bento/errors.py`). Nothing else in the project knows about either.
"""


class TilewiseError(Exception):
    """Base of all errors that a user can cause and can mend."""

    exit_status = 1


class UnknownBandError(TilewiseError):
    """A band name that Sentinel-2 does not have."""


class BandsUnknownError(TilewiseError):
    """A file does not say which bands it holds, and nobody else did."""


class RadiometryUnknownError(TilewiseError):
    """A file does not say its processing level, scale or offset, and nobody else did."""


class UnreadableImageError(TilewiseError):
    """Bytes that are not a readable image of the expected format."""


class TileShapeError(TilewiseError):
    """An image whose size, band count or data type is not what a tile must have."""


class SceneTooLargeError(TilewiseError):
    """A scene with more pixels, or more work in it, than the service takes."""


class MissingBandError(TilewiseError):
    """A file without a band that what is asked of it needs."""


class NoDataError(TilewiseError):
    """A tile without a single pixel that holds data."""


class NoTilesError(TilewiseError):
    """A folder, archive or list without a single tile in it."""


class FetchError(TilewiseError):
    """An archive could not be fetched, or is not the published one."""


class UnsafeArchiveError(TilewiseError):
    """An archive that would write outside its target or unpack to far more than it should."""


class ValidationFailedError(TilewiseError):
    """A data set has errors that must stop the pipeline."""


class PackError(TilewiseError):
    """A pack could not be written or read."""


class CorrectionsError(TilewiseError):
    """A file of reviewed labels that cannot be read, or does not fit the tiles."""


class VersionError(TilewiseError):
    """A version of the data that cannot be had: no such revision, or bytes that no remote holds."""


class DriftError(TilewiseError):
    """Data have changed more than was allowed."""


class ReviewError(TilewiseError):
    """A prediction log, a review or a folder of reviewed tiles that cannot be read, or do not fit each other."""


class PredictionsError(TilewiseError):
    """A table of a model's answers that cannot be read, or does not fit the tiles."""


class SplitError(TilewiseError):
    """A split that names no tile, or tiles that no split names."""


class SceneError(TilewiseError):
    """A scene, or what was said of it, that cannot be understood."""


class NoticeError(TilewiseError):
    """A message that tells of no scene which this consumer may read."""


class QueueError(TilewiseError):
    """A queue that cannot be reached, or does not take or give messages."""


class ResultsError(TilewiseError):
    """A folder of results that cannot be used for this run."""


class FolderBusyError(ResultsError):
    """Another run writes to the folder of results."""


class ModelFileError(TilewiseError):
    """A model file that is missing, corrupt, not ours, or of another version."""


class ExportError(TilewiseError):
    """An exported model that does not answer as its original does."""


class TrainingError(TilewiseError):
    """Training cannot start or go on as asked."""


class StoppedError(TilewiseError):
    """Training was told to end by SIGTERM, and kept all it needs to go on."""

    exit_status = 143  # what a shell reports of a process that SIGTERM ended
