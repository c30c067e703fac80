"""Every error that this package raises on purpose.

::

    EdgeAgentError
    ├── ConfigError            a setting is wrong: file, environment or option
    ├── InputError             a file or folder that the user named cannot be used
    │   └── DatasetError       ... and it was meant to be a data set
    ├── ModelError             an ONNX file or checkpoint does not fit what it is used for
    ├── EngineError            an inference backend could not be built or failed to run
    │   └── NonFiniteEmbedding the network returned NaN or infinity
    ├── SourceError            a camera, file or folder cannot be read, and trying again will not help
    │   └── SourceLost         ... it answered before or may answer later (Retryable)
    ├── StorageError           a local database or disk cannot be read or written
    │   ├── DiskFull           ... since no space is left (Retryable)
    │   └── SpaceMismatch      ... since it holds embeddings of another model
    ├── DownloadError          a server refused a file, or sent another one
    │   └── DownloadInterrupted ... or the connection was lost; what came is kept (Retryable)
    └── DeliveryError          the broker refused, or its settings cannot work
        ├── BrokerRefused      ... it does not accept the login, certificate or protocol
        └── BrokerUnreachable  ... or does not answer now (Retryable)

A command that ends with one of these prints its message and exits 1, without a traceback.
The message says what is wrong, where, and how to mend it.
"""

__all__ = [
    "BrokerRefused",
    "BrokerUnreachable",
    "ConfigError",
    "DatasetError",
    "DeliveryError",
    "DiskFull",
    "DownloadError",
    "DownloadInterrupted",
    "EdgeAgentError",
    "EngineError",
    "InputError",
    "ModelError",
    "NonFiniteEmbedding",
    "Retryable",
    "SourceError",
    "SourceLost",
    "SpaceMismatch",
    "StorageError",
]


class EdgeAgentError(Exception):
    """Root of all errors raised on purpose."""


class Retryable:
    """Mixed into errors after which the same call may succeed later."""


class ConfigError(EdgeAgentError):
    """A setting is wrong: names the file or variable, the key, and the nearest valid value."""


class InputError(EdgeAgentError):
    """A file or folder that the user named cannot be used."""


class DatasetError(InputError):
    """A folder is not a usable data set in Market-1501 layout."""


class ModelError(EdgeAgentError):
    """An ONNX file or checkpoint does not fit what it is used for."""


class EngineError(EdgeAgentError):
    """An inference backend could not be built or failed to run."""


class NonFiniteEmbedding(EngineError):
    """The network returned NaN or infinity for at least one crop."""


class SourceError(EdgeAgentError):
    """A camera, file or folder cannot be read, and trying again will not help."""


class SourceLost(Retryable, SourceError):
    """A source that answered before, or may answer later, gives no frames now."""


class StorageError(EdgeAgentError):
    """A local database or disk cannot be read or written."""


class DiskFull(Retryable, StorageError):
    """No space is left on the disk that holds the local state."""


class SpaceMismatch(StorageError):
    """A gallery holds embeddings of another model, preprocess profile or size."""


class DownloadError(EdgeAgentError):
    """A server refused a file, or what it sent is not the file that was wanted."""


class DownloadInterrupted(Retryable, DownloadError):
    """The connection failed or was lost on the way; what came is kept for the next attempt."""


class DeliveryError(EdgeAgentError):
    """The broker refused the connection or a message, or its settings cannot work."""


class BrokerRefused(DeliveryError):
    """The broker does not accept the login, certificate or protocol; an early retry does not help."""


class BrokerUnreachable(Retryable, DeliveryError):
    """The broker does not answer now."""
