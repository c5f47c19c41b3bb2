"""What fastvoc raises. Every message says what was wrong, what came, what was expected, and the mend."""


class FastvocError(Exception):
    """Root of every error that fastvoc raises on purpose.

    hint: one sentence on how to mend it; the command line prints it on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message} {hint}")
        self.message, self.hint = message, hint


class ShapeError(FastvocError, ValueError):
    """Rank, size, axis order, or a length below the minimum."""


class DTypeError(FastvocError, TypeError):
    """A dtype, layout or tensor subclass that cannot be used."""


class DeviceError(FastvocError, RuntimeError):
    """Tensors on mixed or wrong devices."""


class ConfigError(FastvocError, ValueError):
    """Hyper-parameters, JSON, conflicting or out-of-range options."""


class CheckpointError(FastvocError, RuntimeError):
    """A checkpoint that cannot be used."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that would run code when loaded."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint file that is damaged, truncated or not a checkpoint at all."""


class IncompatibleCheckpointError(CheckpointError):
    """Weights that do not fit the configuration."""


class AudioError(FastvocError):
    """Audio and feature files."""


class BackendUnavailableError(FastvocError, RuntimeError):
    """A backend asked for by name cannot run here; carries the reason."""


class KernelError(FastvocError, RuntimeError):
    """A compiled kernel failed."""


class ResourceLimitError(FastvocError, MemoryError):
    """A limit exceeded before the allocation or launch."""


class FeatureError(AudioError, ValueError):
    """Feature values that no recording can have: NaN, infinity, another convention's range."""
