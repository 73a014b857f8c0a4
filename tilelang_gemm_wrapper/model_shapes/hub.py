"""A checkpoint's config and tensor shapes from the Hugging Face cache or hub; no weights are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.failure_text import first_line
from .checkpoint import (
    CONFIG_FILE,
    INSTALL_EXTRA,
    Checkpoint,
    SourceError,
    Tensor,
    read_directory,
    read_json,
)

# For each answer of the hub: a machine without network shall not wait long for the next source.
TIMEOUT_S = 5.0


def from_cache(model_id: str, revision: str | None) -> Checkpoint:
    """The snapshot of `model_id` in the local cache. SourceError says what the cache lacks."""
    return read_directory(config_in_cache(model_id, revision).parent, "Hugging Face cache")


def config_in_cache(model_id: str, revision: str | None) -> Path:
    """The config.json of `model_id` in the local cache, weights there or not. SourceError if it has none."""
    hub = _huggingface_hub("the Hugging Face cache")
    cache = hub.constants.HF_HUB_CACHE
    try:
        config = hub.try_to_load_from_cache(model_id, CONFIG_FILE, cache_dir=cache, revision=revision)
    except ValueError as error:
        raise SourceError(f"it is no Hugging Face id ({first_line(error)})") from error
    if not isinstance(config, str):
        at = f" at revision {revision}" if revision else ""
        raise SourceError(f"the Hugging Face cache {cache} has no {CONFIG_FILE} of it{at}")
    return Path(config)


def from_hub(model_id: str, revision: str | None) -> Checkpoint:
    """Ask the hub for config.json and the safetensors headers alone. SourceError where it cannot be had."""
    with _asked() as hub:
        config, commit = _download_config(hub, model_id, revision)
        files = hub.get_safetensors_metadata(model_id, revision=commit).files_metadata
    tensors = {
        name: Tensor(tensor.dtype, tuple(tensor.shape))
        for file in files.values()
        for name, tensor in file.tensors.items()
    }
    return Checkpoint("Hugging Face hub", read_json(config), tensors)


def config_from_hub(model_id: str, revision: str | None) -> Path:
    """Ask the hub for config.json alone; it lies in the cache then. SourceError where it cannot be had."""
    with _asked() as hub:
        return _download_config(hub, model_id, revision)[0]


@contextmanager
def _asked() -> Iterator[Any]:
    """The library that asks the hub; what goes wrong with it becomes a SourceError."""
    hub = _huggingface_hub("the Hugging Face hub")
    if hub.constants.HF_HUB_OFFLINE:
        raise SourceError("the Hugging Face hub was not asked, because HF_HUB_OFFLINE is set")
    try:
        yield hub
    except Exception as error:  # the library's errors, its HTTP client's and the system's share no base
        raise SourceError(f"the Hugging Face hub did not give it ({first_line(error)})") from error


def _download_config(hub: Any, model_id: str, revision: str | None) -> tuple[Path, str]:
    """config.json, and the commit that it is of."""
    # First, because it is asked once, where downloads repeat a failed connection for half a minute. Its
    # answer also lets all that is asked for come from one commit.
    commit = hub.model_info(model_id, revision=revision, timeout=TIMEOUT_S).sha
    config = hub.hf_hub_download(model_id, CONFIG_FILE, revision=commit, etag_timeout=TIMEOUT_S)
    return Path(config), commit


def _huggingface_hub(source: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError as error:
        raise SourceError(f"{source} needs huggingface_hub: {INSTALL_EXTRA}") from error
    return huggingface_hub
