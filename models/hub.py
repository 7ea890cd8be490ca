"""Publishing a folder as a repository of the Hugging Face Hub: one commit that holds exactly that folder, or nothing.

Everything goes through huggingface_hub's own client, and so does the token, which this module never sees printed. Files
that arrived before an upload was interrupted are kept by the Hub, which is asked for each before it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from models.paths import hub_model, model_path
from settings.hub import MAIN, HubError, HubName, Kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

OWN = frozenset({".gitattributes", ".gitignore"})
"""Files that belong to a repository, not to what is published in it."""
REGULAR = 10 * 2**20
"""Bytes from which on the Hub keeps no file as a regular one."""


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Fields:
        repo: `owner/name`, or a name below the token's own user.
        revision: a branch, made where there is none; tag: put on the commit.
        private: of a repository that is made; one that exists stays as it is.
    """

    repo: str
    private: bool
    revision: str = MAIN
    tag: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Change:
    """What publishing would do to a file; `size` in bytes."""

    path: str
    size: int
    what: Literal["new", "changed", "same", "gone"]


@dataclass(frozen=True)
class Remote:
    """A repository's branch as it is now.

    Fields:
        commit: None where there is no repository, or no such branch; exists: whether there is a repository.
        files: path -> hash, without those that belong to the repository itself.
    """

    commit: str | None = None
    exists: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """`changed`: whether a commit was made, or everything was there already."""

    url: str
    commit: str
    changed: bool


class Publisher:
    """One folder and one repository.

    Raises:
        HubError: there is no token, or it may not write there; of every method, too, where the Hub says no or is gone.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise HubError(f"hub:{target.repo}: there is no Hub token here; log in (`hf auth login`) or set HF_TOKEN")
        self.folder, self._api = folder, HfApi()
        with _explained(target):
            me = self._api.whoami()
        owner, _, name = target.repo.rpartition("/")
        owners = [me["name"], *(one["name"] for one in me.get("orgs", []))]
        if owner and owner not in owners:
            raise HubError(
                f"hub:{target.repo}: the token is of {me['name']!r}, who may write to {', '.join(owners)}, "
                f"not to {owner!r}"
            )
        self.target = replace(target, repo=f"{owner or me['name']}/{name}")

    def look(self) -> Remote:
        """The branch as it is now."""
        return _look(self._api, self.target)

    def changes(self, remote: Remote) -> list[Change]:
        """What publishing would do, file by file."""
        found = [
            Change(path, file.size, "new" if path not in remote.files else
                   "same" if remote.files[path] in file.hashes else "changed")
            for path, file in self._local.items()
        ]  # fmt: skip
        return found + [Change(path, 0, "gone") for path in sorted(remote.files.keys() - self._local.keys())]

    @cached_property
    def _local(self) -> dict[str, _LocalFile]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): _LocalFile.of(path) for path in files}

    def read(self, path: str, commit: str) -> bytes:
        """A small file of the repository."""
        with _explained(self.target):
            return Path(self._api.hf_hub_download(self.target.repo, path, revision=commit)).read_bytes()

    def publish(self, remote: Remote, message: str) -> Published:
        """Make the branch hold exactly the folder, if it still is as `remote` says.

        A Ctrl-C ends the process at once: threads of the client that are sending a file cannot be stopped otherwise.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        target, api = self.target, self._api
        changes = self.changes(remote)
        with _explained(target), _stopped_at_once(target):
            if not remote.exists:
                api.create_repo(target.repo, private=target.private, exist_ok=True)
            if remote.commit is None:
                if target.revision != MAIN:
                    api.create_branch(target.repo, branch=target.revision, exist_ok=True)
                remote = self.look()
                changes = self.changes(remote)
            commit, differ = remote.commit, [change for change in changes if change.what != "same"]
            if differ:
                operations = [
                    CommitOperationDelete(change.path)
                    if change.what == "gone"
                    else CommitOperationAdd(change.path, self.folder / change.path)
                    for change in differ
                ]
                made = api.create_commit(
                    target.repo, operations, commit_message=message, revision=target.revision, parent_commit=commit
                )
                commit = made.oid
                # the client says nothing of a file that the repository's own .gitignore keeps out
                other = [change.path for change in self.changes(self.look()) if change.what != "same"]
                if other:
                    raise HubError(
                        f"hub:{target}: published as {commit}, but {len(other)} files are otherwise there than here, "
                        f"the first is {other[0]!r}: does its .gitignore keep it out?"
                    )
            if target.tag is not None:
                self._tag(commit)
        return Published(f"{api.endpoint}/{target.repo}", str(commit), bool(differ))

    def _tag(self, commit: str | None) -> None:
        tags = {tag.name: tag.target_commit for tag in self._api.list_repo_refs(self.target.repo).tags}
        tagged = tags.get(self.target.tag)
        if tagged is None:
            self._api.create_tag(self.target.repo, tag=self.target.tag, revision=commit)
        elif tagged != commit:
            raise HubError(
                f"hub:{self.target}: published as {commit}, but the tag {self.target.tag!r} is on {tagged} already; "
                "take another, or delete it"
            )


def _look(api: HfApi, target: Target) -> Remote:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with _explained(target):
        try:
            info = api.repo_info(target.repo, revision=target.revision, files_metadata=True)
        except RevisionNotFoundError:
            return Remote(exists=True)
        except RepositoryNotFoundError:
            return Remote()
    files = {one.rfilename: _hash(one) for one in info.siblings or () if one.rfilename not in OWN}
    return Remote(info.sha, True, files)


def _hash(file: RepoFile) -> str:
    return file.lfs["sha256"] if file.lfs else file.blob_id


@dataclass(frozen=True)
class _LocalFile:
    """`hashes`: by which the Hub knows it, as a large file or as a regular one."""

    size: int
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Self:
        from huggingface_hub.utils.sha import git_hash

        with open(path, "rb") as file:
            large = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        return cls(size, (large,) if size > REGULAR else (large, git_hash(path.read_bytes())))


@contextmanager
def _stopped_at_once(target: Target) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        text = f"\nhub:{target}: stopped before it was published; what has arrived is kept, the same command goes on\n"
        os.write(2, text.encode())
        os._exit(130)

    old = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


SAID: Mapping[int, str] = {
    401: "the Hub does not take this token; make a new one, and log in (`hf auth login`)",
    402: "there is no room left for it on the Hub",
    403: "the token may not write there; it needs the role `write`",
    404: "there is no such repository, or it is not to be seen with this token",
    409: "the repository was changed by somebody else meanwhile; look at it, then run the same command again",
    412: "the repository was changed by somebody else meanwhile; look at it, then run the same command again",
    413: "the Hub takes no file of this size",
    429: "the Hub asks to wait a while; then run the same command, which goes on",
    507: "there is no room left for it on the Hub",
}
UNWELL = "the Hub is not well just now; the same command goes on later"


@contextmanager
def _explained(target: Target) -> Iterator[None]:
    """One line for whatever goes wrong between here and the Hub."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HubError:
        raise
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError | httpx.HTTPStatusError):
            cause = cause.__cause__
        raise HubError(f"hub:{target}: nothing was published: {_reason(cause or error)}") from error


def _reason(error: BaseException) -> str:
    import httpx

    response = getattr(error, "response", None)
    if response is not None:
        status = response.status_code
        own = getattr(error, "server_message", None) or ""
        said = SAID.get(status, UNWELL if status >= 500 else "the Hub refuses")
        return f"{said} ({status}{f': {_line(own)}' if own else ''})"
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    if any(isinstance(one, httpx.TransportError | ConnectionError) for one in chain):
        return f"the connection broke off; what has arrived is kept, the same command goes on ({_line(str(chain[-1]))})"
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def readme_of(kind: Kind, name: str) -> str | None:
    """The card of a model or data set; None where there is none at hand.

    Args:
        name: shipped, a folder, or of the Hub, which is asked for the card where it is not in the cache.
    """
    import httpx
    from huggingface_hub import hf_hub_download

    hub = hub_model(name) if kind == "model" else HubName.parse(name)
    try:
        if hub is None:
            return (Path(model_path(name)) / "README.md").read_text(encoding="utf-8")
        path = hf_hub_download(hub.repo, "README.md", revision=hub.revision, repo_type=kind)
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError, httpx.HTTPError):
        return None
