"""Upload a folder to a model hub, with the token from the environment."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from abctune.core.errors import UserError

REFUSED = (401, 403)


def upload(folder: Path, repo: str, token: str, public: bool, message: str) -> str:
    """Make the repository if it is not there, and commit the folder's files to it at once; return the commit's address.

    Files of an earlier upload that the folder lacks are removed, so that no adapter stays next to a merged model.

    Raises:
        UserError: no network, no right to write there, or the hub does not take the files. The token is not shown.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        return api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns="*"
        ).commit_url
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it and run again") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise UserError(
                f"--repo {repo}: the token in HF_TOKEN may not write there (status {status}); "
                "name a repository of its owner, and use a token with write access"
            ) from None
        raise UserError(f"--repo {repo}: the hub answered with status {status}; try again later") from None
    except httpx.HTTPError as error:
        raise UserError(
            f"the model hub cannot be reached; check the network (or HTTPS_PROXY, HF_ENDPOINT) and run again ({error})"
        ) from None
    except ValueError as error:  # the hub's own check of the card's front matter
        raise UserError(f"--repo {repo}: the hub refused the files: {' '.join(str(error).split())}") from None
