"""Publishing files as a repository of the Hugging Face Hub: one commit that holds exactly them, or nothing.

Everything goes through huggingface_hub's own client, and so does the token, which this module never sees printed. Files
that arrived before an upload was interrupted are kept by the Hub, which is asked for each before it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from models.paths import hub_model, model_path
from settings.hub import MAIN, HubError, HubName, Kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

ATTRIBUTES, IGNORED = ".gitattributes", ".gitignore"
REGULAR = 10 * 2**20
"""Bytes from which on the Hub keeps no file as a regular one."""


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Fields:
        repo: `owner/name`, or a name below the token's own user.
        private: of a repository that is made.
        revision: a branch, made where there is none; tag: put on the commit.
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
        commit: None where there is no repository, or no such branch.
        exists: whether there is a repository; public: whether everybody sees it.
        files: path -> hash, without what belongs to the repository itself.
        ignores: whether it has a .gitignore, by which the Hub leaves files out of a commit without a word.
        tags: name -> commit.
    """

    commit: str | None = None
    exists: bool = False
    public: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    ignores: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """`changed`: whether a commit was made, or everything was there already."""

    url: str
    commit: str
    changed: bool


class Publisher:
    """Some files and one repository.

    Args:
        files: path in the repository -> file.
        sha256: of those of which it is known already; large files take a while.

    Raises:
        HubError: there is no token, or it may not write there; of every method, too, where the Hub says no or is gone.
    """

    def __init__(self, target: Target, files: Mapping[str, Path], sha256: Mapping[str, str]) -> None:
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise HubError(f"hub:{target.repo}: there is no Hub token here; log in (`hf auth login`) or set HF_TOKEN")
        self._files, self._sha256, self._api = files, sha256, HfApi()
        with _explained(target, NOTHING):
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
        with _explained(self.target, NOTHING):
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
        return {path: _LocalFile.of(file, self._sha256.get(path)) for path, file in self._files.items()}

    def publish(self, remote: Remote, message: str, say: Callable[[str], None]) -> Published:
        """Make the branch hold exactly the files, if it still is as `remote` says.

        A Ctrl-C ends the process at once, with one line: threads of the client that are sending a file cannot be
        stopped otherwise.

        Args:
            say: to the user, whatever is done with standard error.
        """
        target, api = self.target, self._api
        self._must_be_possible(remote)
        with _explained(target, NOTHING), _stopped_at_once(target, say):
            if remote.commit is None:
                remote = self._made(remote)
            commit = remote.commit
            differ = [change for change in self.changes(remote) if change.what != "same"]
            if differ:
                commit = api.create_commit(
                    target.repo, self._operations(differ), commit_message=message, revision=target.revision,
                    parent_commit=commit,
                ).oid  # fmt: skip
        return Published(f"{api.endpoint}/{target.repo}", str(commit), bool(differ))

    def finish(self, published: Published) -> None:
        """Put the tag on the commit, and see that the branch holds what it should."""
        target, api = self.target, self._api
        with _explained(target, f"published as {published.commit}, but: "):
            if target.tag is not None and _look(api, target).tags.get(target.tag) is None:
                api.create_tag(target.repo, tag=target.tag, revision=published.commit)
            other = [change.path for change in self.changes(_look(api, target)) if change.what != "same"]
            if published.changed and other:
                raise ValueError(f"{len(other)} files are otherwise there than here, the first is {other[0]!r}")

    def _must_be_possible(self, remote: Remote) -> None:
        """What can be known before anything is sent."""
        target = self.target
        if remote.ignores:
            raise HubError(
                f"hub:{target}: nothing was published: the repository has a {IGNORED}, which may leave files out "
                "without a word; delete it there first"
            )
        tagged = remote.tags.get(target.tag) if target.tag is not None else None
        same = all(change.what == "same" for change in self.changes(remote))
        if tagged is not None and not (same and tagged == remote.commit):
            raise HubError(
                f"hub:{target}: nothing was published: the tag {target.tag!r} is on commit {tagged[:12]} already; take "
                "another, or delete it there"
            )

    def _made(self, remote: Remote) -> Remote:
        """A repository, or a branch, that was not there; one that came meanwhile is somebody else's."""
        target, api = self.target, self._api
        if not remote.exists:
            api.create_repo(target.repo, private=target.private)
        if target.revision != MAIN:
            api.create_branch(target.repo, branch=target.revision)
        made = _look(api, target)
        if not remote.exists and made.files:
            raise HubError(f"hub:{target}: nothing was published: {SAID[409]}")
        return made

    def _operations(self, changes: list[Change]) -> list[object]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        return [
            CommitOperationDelete(change.path)
            if change.what == "gone"
            else CommitOperationAdd(change.path, self._files[change.path])
            for change in changes
        ]


def _look(api: HfApi, target: Target) -> Remote:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.repo_info(target.repo, revision=target.revision, files_metadata=True)
    except RevisionNotFoundError:
        own = api.repo_info(target.repo)
        return Remote(exists=True, public=not own.private, tags=_tags(api, target))
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Remote()
    names = {one.rfilename for one in info.siblings or ()}
    files = {one.rfilename: _hash(one) for one in info.siblings or () if one.rfilename not in (ATTRIBUTES, IGNORED)}
    return Remote(info.sha, True, not info.private, files, IGNORED in names, _tags(api, target))


def _tags(api: HfApi, target: Target) -> dict[str, str]:
    if target.tag is None:
        return {}
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(target.repo).tags}


def _hash(file: RepoFile) -> str:
    return file.lfs["sha256"] if file.lfs else file.blob_id


@dataclass(frozen=True)
class _LocalFile:
    """`hashes`: by which the Hub knows it, as a large file or as a regular one."""

    size: int
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, sha256: str | None) -> Self:
        from huggingface_hub.utils.sha import git_hash

        if sha256 is None:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        return cls(size, (sha256,) if size > REGULAR else (sha256, git_hash(path.read_bytes())))


@contextmanager
def _stopped_at_once(target: Target, say: Callable[[str], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        say(f"\nhub:{target}: stopped before it was published; what has arrived is kept, the same command goes on")
        os._exit(130)

    old = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


NOTHING = "nothing was published: "
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
def _explained(target: Target, so_far: str) -> Iterator[None]:
    """One line for whatever goes wrong between here and the Hub.

    Args:
        so_far: what has become of the publishing by then.
    """
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
        raise HubError(f"hub:{target}: {so_far}{_reason(cause or error)}") from error


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
