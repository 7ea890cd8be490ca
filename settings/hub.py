"""Models and data sets of the Hugging Face Hub by name, and the commit that a name means.

    owner/name[:config][@revision]

`config` is a data set's; a revision is a branch, a tag or a commit, `main` where none is given. Branches move: a run
asks once what each of its names means and works with that commit from then on (orchestra/run/commits.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

Kind = Literal["model", "dataset"]
MAIN = "main"
FORM = re.compile(
    r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII
)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which does not move."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


class HubError(ValueError):
    """A name whose commit cannot be found out; the message says why and what to do."""

    user_message = True


@dataclass(frozen=True)
class HubName:
    """A name taken apart; `str` puts it together again."""

    repo: str
    config: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """None where the text cannot be such a name."""
        found = FORM.fullmatch(name)
        return cls(**found.groupdict()) if found is not None else None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config is not None else ""
        revision = f"@{self.revision}" if self.revision is not None else ""
        return f"{self.repo}{config}{revision}"

    def at(self, commit: str) -> HubName:
        """The same at a commit."""
        return replace(self, revision=commit)


def commit_of(kind: Kind, name: HubName) -> str:
    """The commit that a name means now, of 40 hexadecimal digits.

    Asks the Hub; where that cannot be reached (or `HF_HUB_OFFLINE` is set), the Hub's cache on this machine.

    Raises:
        HubError: there is no such repository or revision, or neither of the two knows.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    ask = {"model": HfApi().model_info, "dataset": HfApi().dataset_info}[kind]
    try:
        return ask(name.repo, revision=name.revision).sha
    except RevisionNotFoundError as error:
        raise HubError(f"{kind} {name.repo!r} has no revision {name.revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{kind} {name.repo!r} is not on the Hub, or not to be seen without a token; check the name, or log in "
            "(`hf auth login`)"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        commit = _cached_commit(kind, name)
        if commit is None:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise HubError(
                f"{kind} '{name}': the Hub cannot be asked which commit this is ({reason}), and the cache of this "
                "machine does not have it; fetch it once with a network, or give a local path"
            ) from error
        return commit


def _cached_commit(kind: Kind, name: HubName) -> str | None:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    wanted = name.revision or MAIN
    for repo in repos:
        if (repo.repo_type, repo.repo_id) == (kind, name.repo):
            for revision in repo.revisions:
                if wanted in revision.refs or wanted == revision.commit_hash:
                    return revision.commit_hash
    return None
