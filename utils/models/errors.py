"""Why a model can't be had, in words for a learner: what huggingface_hub raises becomes what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class ModelUnavailable(RuntimeError):
    """The model that was asked for can't be loaded here. The message says why and what to do."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and everything it was raised from: transformers wraps the Hub's errors in an OSError."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def explain(
    error: BaseException, model: str, instead: str = "", *, setting: str = "COURSE_MODEL"
) -> ModelUnavailable | None:
    """What an error of the Hub means for whoever wanted `model`, or None for an error that isn't the Hub's.

    `instead` is a sentence on another way to the same model, added where the network is what's missing; `setting` is
    what names the model: the environment's COURSE_MODEL, or a function's argument, such as ``base=``.
    """
    from huggingface_hub import errors

    for link in _chain(error):
        if isinstance(link, errors.GatedRepoError):  # a kind of RepositoryNotFoundError, so it comes first
            return ModelUnavailable(
                f"{model} is gated: its owner gives it only to people who accepted its licence. Log in at "
                f"https://huggingface.co/{model} and accept the licence there, then run `hf auth login` with a token "
                f"from https://huggingface.co/settings/tokens. Or set {setting} to a model that isn't gated"
            )
        if isinstance(link, errors.RepositoryNotFoundError):
            return ModelUnavailable(
                f"the Hub has no model {model!r} that you may see. Look for a typing mistake (owner/name); for a "
                f"private model run `hf auth login`; if you meant a folder, there is none at {Path(model).absolute()}"
            )
        if isinstance(link, errors.HFValidationError):
            return ModelUnavailable(
                f"{model!r} is neither a folder that exists nor a Hub id like owner/name. Correct {setting}"
            )
        if isinstance(link, errors.RemoteEntryNotFoundError):
            return ModelUnavailable(
                f"{model} on the Hub lacks a file that is needed ({_first_line(link)}). The course loads models of "
                f"transformers with weights in safetensors. Set {setting} to such a model"
            )
        if isinstance(link, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            return ModelUnavailable(
                f"{model} isn't on this machine, and the Hub can't be reached (no network, or HF_HUB_OFFLINE is set). "
                f"On a machine with a network run `hf download {model} --local-dir model`, copy that folder here and "
                f"set {setting} to it; or copy the whole Hub cache and set HF_HOME to it. {instead}".strip()
            )
    for link in _chain(error):
        if isinstance(link, errors.HfHubHTTPError) and getattr(link.response, "status_code", None) in (401, 403):
            return ModelUnavailable(
                f"the Hub refused to give {model} for the token that you logged in with: it may have expired, or lack "
                "the right to read. Run `hf auth login` with a new one (also look at the variable HF_TOKEN)"
            )
        if isinstance(link, getattr(errors, "HTTPError", errors.HfHubHTTPError)):  # connection lost, 5xx, 429, ...
            return ModelUnavailable(
                f"the Hub failed while {model} was fetched ({_first_line(link)}). Files that came whole are kept: "
                f"try again in a few minutes. {instead}".strip()
            )
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_folder(folder: Path, *, setting: str = "COURSE_MODEL") -> None:
    """Raise ModelUnavailable unless `folder` holds a config, weights in safetensors and a tokenizer; `setting` as in
    :func:`explain`.
    """
    if not folder.is_dir():
        raise ModelUnavailable(f"there is no folder {folder}. Correct {setting}, or unset it")
    names = {file.name for file in folder.iterdir()}
    if "config.json" not in names:
        why = "no config.json, so it isn't a model of transformers"
        if "adapter_config.json" in names:
            why = "a LoRA adapter and no model: the base model, to which it belongs, is named in adapter_config.json"
        raise ModelUnavailable(
            f"the folder {folder} holds {why}. Set {setting} to a folder that save_pretrained or `hf download` wrote"
        )
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickled:
            raise ModelUnavailable(
                f"the folder {folder} holds its weights only as {pickled[0]}, a pickle, and loading a pickle can run "
                "any code. The course loads safetensors only: fetch that form of the model, or, if you trust its "
                "origin, load it once yourself and write it with save_pretrained"
            )
        raise ModelUnavailable(
            f"the folder {folder} holds a config.json and no weights (*.safetensors). Was the download or the copy "
            "cut short?"
        )
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ModelUnavailable(
            f"the folder {folder} holds no tokenizer (tokenizer.json). Save it there with tokenizer.save_pretrained"
        )
