"""A published folder to the Hugging Face hub, with the token that the user's environment or login has."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from boothlab.errors import RunFailedError, UserError
from boothlab.files import shown
from boothlab.tracking.redaction import redact_text


def check_repo(repo: str) -> None:
    """Raise UserError unless it is `user/name` as the hub allows it."""
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"repo={shown(repo)}: is no name of the hub; give user/name of letters, digits, '-', '_' and '.'"
        )


def upload(folder: Path, repo: str, *, private: bool = True, api: Any = None) -> str:
    """Make the repository if it is not there, and upload the folder in one commit; returns its address.

    The token is the environment's or the login's; it is passed on by the library and written nowhere. Raises UserError
    when there is none, or when a repository that is to be private is public already, and RunFailedError when the hub
    does not take it.
    """
    check_repo(repo)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError("upload=true: HF_HUB_OFFLINE is set, which forbids the network; unset it")
    if get_token() is None:
        raise UserError("upload=true: no token of the hub is set; log in with `hf auth login`, or set HF_TOKEN")
    api = api or HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        if private and not api.repo_info(repo, repo_type="model").private:
            raise UserError(
                f"repo={shown(repo)}: is there already and public; say private=false to upload all the same"
            )
        done = api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            repo_type="model",
            commit_message=f"Publish {repo.split('/')[1]} with boothlab",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = redact_text(lines[0]) if lines else type(error).__name__
        raise RunFailedError(
            f"repo={shown(repo)}: the hub did not take it ({said}); the folder {shown(folder)} is whole: try again"
        ) from error
    return str(getattr(done, "commit_url", None) or f"https://huggingface.co/{repo}")
