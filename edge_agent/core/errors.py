"""Errors of this package.

Each has the base class of its kind; `Retryable` marks those after which the same call may succeed later.
A command that ends with one of these prints its message and exits 1, without a traceback.
The message states what is wrong, where, and how to correct it.
"""


class EdgeAgentError(Exception):
    """Root of all errors of this package; each argument is one line of the message."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Retryable:
    """Mix-in of errors after which the same call may succeed later."""


class ConfigError(EdgeAgentError):
    """A setting is invalid; names the file or variable, the key, and the nearest valid value."""


class InputError(EdgeAgentError):
    """A named file or folder cannot be used."""


class MissingFile(InputError):
    """A named file does not exist."""


class DatasetError(InputError):
    """A folder is not a usable data set in Market-1501 layout."""


class ModelError(EdgeAgentError):
    """An ONNX file or checkpoint does not fit what it is used for."""


class EngineError(EdgeAgentError):
    """An inference backend could not be built or failed to run."""


class EngineUnavailable(Retryable, EngineError):
    """An inference server gives no rows now; it may again later."""


class NonFiniteEmbedding(EngineError):
    """The network returned NaN or infinity for at least one crop."""


class SourceError(EdgeAgentError):
    """A camera, file or folder cannot be read, and retries are useless."""


class SourceLost(Retryable, SourceError):
    """A source temporarily delivers no frames."""


class SourceFailed(SourceLost):
    """An unexpected exception ended the reading of a source; it is started again."""


class StorageError(EdgeAgentError):
    """A local database or disk cannot be read or written."""


class DiskFull(Retryable, StorageError):
    """No space is left on the disk that holds the local state."""


class SpaceMismatch(StorageError):
    """A gallery has embeddings of another model, preprocess profile or size."""


class DownloadError(EdgeAgentError):
    """A server refused a file, or sent a wrong one."""


class DownloadInterrupted(Retryable, DownloadError):
    """The connection failed or was lost; received data is kept for the next attempt."""


class DeliveryError(EdgeAgentError):
    """The broker refused the connection or a message, or its settings are invalid."""


class BrokerRefused(DeliveryError):
    """The broker does not accept the login, certificate or protocol; an early retry does not help."""


class BrokerUnreachable(Retryable, DeliveryError):
    """The broker does not answer now."""


class MessageRefused(DeliveryError):
    """The broker does not take a message; it may take others."""


class MessageTooLarge(MessageRefused):
    """A message is larger than the broker accepts."""
