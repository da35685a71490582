"""An adapter for the Hugging Face Hub: a folder with exactly what would be sent, looked over first, then its sending.

    ready = hub_dry_run("my-adapter", "me/pirate", "to-send", base="owner/model", licences=Licences("mit", ...))
    print(ready)                                   # every file with its size, what is left out, what is still missing
    PeftModel.from_pretrained(base, "to-send")     # what a stranger will load
    push(ready)                                    # private, unless you said otherwise

A folder that was trained in holds more than an adapter: optimizer states, pickled arguments, held-out records with
their answers. So what is sent is a list of names, and the rest stays. Revisions are git's: :func:`push` can tag what it
sent, users name the tag (``PeftModel.from_pretrained(base, repo, revision="v1")``), and :func:`roll_back` makes the
main branch what a tag was.

Attributes:
    SENT: The files of a folder that are sent: the adapter, its card, and a tokenizer's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.export.adapter_facts import adapter_facts
from utils.export.errors import ExportError
from utils.export.hub_card import CARD, Licences, hub_card
from utils.export.hub_secrets import secrets_in, secrets_in_weights
from utils.files import expanded, new_folder, replaced_folder
from utils.lora.adapter_config import CONFIG, short
from utils.lora.checkpoint import WEIGHTS, check_files
from utils.train.consolidate import check_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SENT = (
    CONFIG, WEIGHTS, CARD, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model", "LICENSE", "LICENSE.txt", "NOTICE",
)  # fmt: skip
_NEVER = (
    (r"optimizer.*|scheduler.*|rng_state.*|scaler.*|global_step.*|.*fsdp.*", "a training run's optimizer and the like"),
    (r".*\.(bin|pt|pth|pkl|ckpt)", "a pickle, which can run code where it is loaded"),
    (
        r"\.env.*|.*\.env|.*\.(pem|key|p12|pfx|jks|keystore|kdbx)|id_(rsa|dsa|ecdsa|ed25519).*|\.netrc|\.npmrc|\.pypirc|"
        r"\.htpasswd|token|secrets?(\..*)?|.*credential.*|.*service[_-]?account.*\.json|kaggle\.json|\.(git|aws|ssh).*",
        "may hold a secret",
    ),
)
_ON_REQUEST = (
    (r"trainer_state\.json|run\.json|trained\.json|runs|checkpoint.*", "of a training run"),
    (r"evaluation\.json", "held-out records and their answers: your data"),
)


class Sent(NamedTuple):
    """A file that would be sent: its name, its size in bytes, and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Upload:
    """What one push sends.

    repo_id: OWNER/NAME. private: whether the repository is made private. revision: the branch. tag: what the new commit
    is called besides, if anything. folder: the files, as they are sent. files: these. left_out: what of the source
    stays, by name, with the reason. missing: what readers of the card will miss.
    """

    repo_id: str
    private: bool
    revision: str
    tag: str | None
    folder: Path
    files: tuple[Sent, ...]
    left_out: Mapping[str, str]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        seen = "private" if self.private else "public, for everybody"
        tag = f", tagged {self.tag}" if self.tag else ""
        lines = [f"https://huggingface.co/{self.repo_id} ({seen}), branch {self.revision}{tag}"]
        lines += [f"  {file.size:>12,} bytes  {file.name}" for file in self.files]
        lines += [f"  left out: {name} ({why})" for name, why in self.left_out.items()]
        return "\n".join([*lines, *(f"Look: {one}" for one in self.missing)])


def hub_dry_run(
    folder: str | Path,
    repo_id: str,
    to: str | Path,
    *,
    private: bool = True,
    revision: str = "main",
    tag: str | None = None,
    base: str | None = None,
    licences: Licences | None = None,
    also: Sequence[str] = (),
) -> Upload:
    """Write to the new folder `to` exactly what :func:`push` would send of the adapter in `folder`; nothing is sent.

    `base` is what the base is called on the Hub, where the adapter's settings have another name for it; `licences` are
    written into the card. `also` names files beyond :data:`SENT`. Raises FileExistsError when `to` is there,
    FileNotFoundError and ValueError for an adapter that is missing, damaged or one rank's share, and ExportError for a
    name that the Hub doesn't take, a base that only this machine has, a card whose header the Hub can't read, or a file
    with a secret in it.
    """
    folder, to = expanded(folder), new_folder(expanded(to))
    _check_names(repo_id, revision, tag)
    facts = adapter_facts(folder)
    check_whole(folder)
    check_files(folder)
    name = _base(base or facts.settings.get("base_model_name_or_path"))
    _check_also(folder, also)
    contents = {one: (folder / one).read_bytes() for one in (*SENT, *also) if (folder / one).is_file()}
    contents[CONFIG] = _settings(facts.settings, name)
    written = contents.get(CARD, b"").decode("utf-8", errors="replace")
    card, missing = hub_card(written, repo_id, name, licences or Licences())
    contents[CARD] = card.encode()
    for one, data in contents.items():
        _refuse_secrets(one, data, folder)
    with replaced_folder(to) as new:
        for one, data in contents.items():
            (new / one).write_bytes(data)
    files = tuple(Sent(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in sorted(contents.items()))
    stays = {path.name: _why(path.name) for path in sorted(folder.iterdir()) if path.name not in contents}
    return Upload(repo_id, private, revision, tag, to, files, stays, tuple(missing))


def push(ready: Upload, *, message: str = "Upload adapter", api: HfApi | None = None) -> str:
    """Send what a dry run wrote, in one commit, and tag it where a tag was asked for; the commit's address comes back.

    `api` is by default that of the token that ``hf auth login`` keeps. The repository is made when it isn't there.
    Raises ExportError, before anything is sent, when a file is no longer what the dry run showed, when the repository
    is there and is seen by everybody although `ready` is private, or when the tag is taken; huggingface_hub's errors go
    on as they are.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub import HfApi as Api

    for file in ready.files:
        path = ready.folder / file.name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            raise ExportError(f"{path} isn't what the dry run showed any more: run it again, and look at it again")
    api = api or Api()
    api.create_repo(ready.repo_id, private=ready.private, exist_ok=True)
    if ready.private and api.repo_info(ready.repo_id).private is False:
        raise ExportError(
            f"{ready.repo_id} is there and everybody sees it, and this was to be private: take another name, make it "
            "private in its settings, or pass private=False"
        )
    if ready.tag and ready.tag in _tags(api, ready.repo_id):
        raise ExportError(f"{ready.repo_id} has a tag {ready.tag} already, which others may rely on: take the next one")
    if ready.revision != "main":
        api.create_branch(ready.repo_id, branch=ready.revision, exist_ok=True)
    added = [CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=str(ready.folder / f.name)) for f in ready.files]
    done = api.create_commit(ready.repo_id, added, commit_message=message, revision=ready.revision)
    if ready.tag:
        api.create_tag(ready.repo_id, tag=ready.tag, revision=done.oid)
    return done.commit_url


def roll_back(repo_id: str, tag: str, *, api: HfApi | None = None) -> str:
    """Make the main branch what it was at `tag`, by a new commit, so that those who name no revision get that again.

    Nothing is lost: the commits between stay, and can be named. Raises ExportError when there is no such tag. Returns
    the commit's address.
    """
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete
    from huggingface_hub import HfApi as Api

    api = api or Api()
    if tag not in _tags(api, repo_id):
        raise ExportError(f"{repo_id} has no tag {tag!r}, only {', '.join(sorted(_tags(api, repo_id))) or 'none'}")
    then, now = (set(api.list_repo_files(repo_id, revision=which)) for which in (tag, "main"))
    copied = [CommitOperationCopy(name, name, src_revision=tag) for name in sorted(then)]
    gone = [CommitOperationDelete(path_in_repo=name) for name in sorted(now - then)]
    return api.create_commit(repo_id, [*copied, *gone], commit_message=f"Back to {tag}", revision="main").commit_url


def _tags(api: HfApi, repo_id: str) -> set[str]:
    """The tags of a repository."""
    return {one.name for one in api.list_repo_refs(repo_id).tags}


def _check_also(folder: Path, also: Sequence[str]) -> None:
    """Raise ExportError for a further file that isn't there, or that is never sent."""
    for name in also:
        if Path(name).name != name or not (folder / name).is_file():
            raise ExportError(f"{folder} holds no file {short(name)}, which `also` names")
        if why := _reason(_NEVER, name):
            raise ExportError(f"{name} isn't sent: {why}")


def _check_names(repo_id: str, revision: str, tag: str | None) -> None:
    """Raise ExportError for a repository, a branch or a tag that can't be called so."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(f"the Hub takes no repository called {short(repo_id)}: {error}") from error
    if repo_id.count("/") != 1:
        raise ExportError(f"a repository is called OWNER/NAME, such as me/pirate, not {short(repo_id)}")
    for name in filter(None, (revision, tag)):
        if not re.fullmatch(r"[\w][\w./-]*", name) or ".." in name or name.endswith((".", "/", ".lock")):
            raise ExportError(f"git takes no branch or tag called {short(name)}: use letters, digits, dots and hyphens")


def _base(name: Any) -> str:
    """The base's name, as strangers know it. Raises ExportError when it is none, or a place on this machine."""
    if not isinstance(name, str) or not name.strip():
        raise ExportError("base_model_name_or_path is empty, and nobody else can know the base: pass base='OWNER/NAME'")
    places = (PurePosixPath(name), PureWindowsPath(name))
    if any(one.is_absolute() for one in places) or name.startswith(("~", ".")) or "\\" in name or Path(name).is_dir():
        raise ExportError(
            f"the adapter's base is {short(name)}, a folder of this machine, which nobody else has: pass what it is "
            "called on the Hub, base='OWNER/NAME'"
        )
    return name


def _settings(settings: Mapping[str, Any], base: str) -> bytes:
    """adapter_config.json with the base's name."""
    return (json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n").encode()


def _refuse_secrets(name: str, data: bytes, folder: Path) -> None:
    """Raise ExportError for a text that holds what nobody else should read, naming the line, and not the secret; of the
    weights' file, in `folder`, the text in its header.
    """
    found = secrets_in_weights(folder / WEIGHTS) if name == WEIGHTS else secrets_in(name, data)
    if first := next(iter(found), None):
        raise ExportError(
            f"{name}, line {first.line}, holds what looks like {first.what}: take it out, then run this again"
        )


def _why(name: str) -> str:
    """Why a file stays."""
    return _reason(_NEVER + _ON_REQUEST, name) or "no part of an adapter; name it in `also` to send it"


def _reason(reasons: Sequence[tuple[str, str]], name: str) -> str:
    """The first reason whose pattern a file's name matches, or ""."""
    return next((why for pattern, why in reasons if re.fullmatch(pattern, name, re.IGNORECASE)), "")
