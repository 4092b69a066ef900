"""What can go wrong, as one line each: what was given, what was expected, what to do."""


class MtlError(Exception):
    """Base of every error that this project raises on purpose; its text is one clear line."""


class ConfigError(MtlError):
    """A model's config.json, or a part of it, describes nothing that we can build."""


class WeightsError(MtlError):
    """A model's files are missing, unreachable, damaged, or not the files they should be."""


class InputError(MtlError):
    """Texts, token ids or options that a call cannot work with."""


class RecipeError(MtlError):
    """A recipe, or the labelled data that it names, is wrong; the text names file and line.

    ``field`` is the setting that is wrong, where it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TrainingError(MtlError):
    """Training cannot start, or had to stop."""


class CheckpointError(MtlError):
    """A training checkpoint cannot be written or read."""
