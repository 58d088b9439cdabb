"""Model folders on the Hugging Face hub: fetched into its cache, written and uploaded.

Only `config.json`, safetensors and text are ever fetched: nothing that could carry code.
"""

from __future__ import annotations

import re
import tempfile
from abc import abstractmethod
from pathlib import Path

from varlit.errors import UserError
from varlit.models.files import CONFIG_FILE

HTTP_CLIENTS = ("httpx", "requests")  # of the hub's newer and older versions
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED = ["config.json", "*.safetensors", "tokenizer/config.json", "tokenizer/*.safetensors"]
CARD = """\
---
library_name: varlit
tags: [varlit, image-generation, visual-autoregressive]
---
A {kind} of [VAR](https://arxiv.org/abs/2404.02905), trained with varlit.

```python
import varlit

model = varlit.load("{repo_id}")
```
"""


class Shareable:
    """A model that writes itself to a folder and thereby to the hub."""

    kind: str

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder that describes itself: safetensors with `config.json` beside them."""

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the model to the Hugging Face hub.

        Args:
            repo_id: `owner/model`; made where it does not exist.
            private: Whether a new one is hidden from others.

        Returns:
            The address of its page.

        Raises:
            UserError: If the hub refuses or is not reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder), repo_id, self.kind, private)


def is_hub_id(name: str | Path) -> bool:
    """Whether a name has the form `owner/model`."""
    return isinstance(name, str) and HUB_ID.fullmatch(name) is not None


def fetch(repo_id: str, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Fetch a model into the hub's cache, or find it there.

    Args:
        repo_id: `owner/model`.
        revision: Branch, tag or commit; the newest of the main branch when None.
        local_files_only: Look into the cache only, as HF_HUB_OFFLINE=1 does.

    Returns:
        The folder in the cache.

    Raises:
        UserError: If there is no such model, no way to reach it, or it is not one of varlit.
    """
    from huggingface_hub import errors, snapshot_download

    at = f"{repo_id}@{revision}" if revision else repo_id
    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=WANTED, local_files_only=local_files_only
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise UserError(
            f"{at} is not in the local cache, and the hub was not reached; go online once (without "
            "HF_HUB_OFFLINE), or copy the model's folder here and give its path"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no {at} that you may read; check the spelling, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(
            f"the hub did not give {at}: {_first_line(error)}; check the name"
        ) from error
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise UserError(
            f"{at} holds no varlit model ({CONFIG_FILE} is missing); official .pth files are "
            "downloaded by hand and converted with: varlit convert FILE"
        )
    return Path(folder)


def upload(folder: Path, repo_id: str, kind: str, private: bool = False) -> str:
    """Upload a model folder, and a card where the model has none.

    Args:
        folder: What `save_pretrained` wrote; the card is added to it.
        repo_id: `owner/model`; made where it does not exist.
        kind: What the card calls it.
        private: Whether a new one is hidden from others.

    Returns:
        The address of the model's page.

    Raises:
        UserError: If the hub refuses or is not reached.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if not api.file_exists(repo_id, "README.md"):
            (folder / "README.md").write_text(CARD.format(kind=kind, repo_id=repo_id))
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"Upload a {kind} with varlit"
        )
    except Exception as error:
        # What a broken line raises belongs to the hub's own client, which differs by version.
        is_known = isinstance(error, errors.HfHubHTTPError | errors.HFValidationError | OSError)
        if not (is_known or type(error).__module__.startswith(HTTP_CLIENTS)):
            raise
        raise UserError(
            f"the hub did not take {repo_id}: {_first_line(error)}. Be online, log in with "
            "`hf auth login`, and write the name as owner/model"
        ) from error
    return str(commit.repo_url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
