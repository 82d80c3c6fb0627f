"""Find the copywriter that the settings name: a shipped model, a folder, or a Hugging Face checkpoint to convert."""

from pathlib import Path

from stream.settings import Settings


def copywriter_folder_of(settings: Settings) -> Path:
    """Return the folder of the configured copywriter.

    Raises ManifestError if a checkpoint cannot be found or converted.
    """
    if settings.copywriter is None:
        return settings.models_dir / "copywriter"
    # Only a checkpoint needs the converter, which loads safetensors and onnx.
    from models.copywriter.checkpoint import checkpoint_folder

    return checkpoint_folder(settings.copywriter)
