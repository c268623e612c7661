"""Upload an exported directory to the Hugging Face Hub in one commit, with errors in one line."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, get_token

from aim_lightning.utils.errors import UserError, first_line
from aim_lightning.weights.hub import REPOSITORY
from aim_lightning.weights.model_card import CARD
from aim_lightning.weights.model_card import REPOSITORY as PLACEHOLDER
from aim_lightning.weights.source import CONFIG, MAIN, main_file, weight_files

# Further files that are uploaded where they exist.
ACCOMPANYING = (CARD, "*.png", "LICENSE*")


class Upload(NamedTuple):
    """A commit: its address, and the sizes of its files in bytes by name."""

    url: str
    files: dict[str, int]


def upload(directory: str | Path, repository: str, private: bool = False) -> Upload:
    """Upload configuration, weights, model card and images; other files of the directory stay here.

    The model card names the repository in its examples. HF_TOKEN is the token, HF_ENDPOINT the address of another Hub.

    Args:
        directory: of `weights export`.
        repository: OWNER/NAME; is created if necessary.
        private: create the repository as private.

    Raises:
        UserError: files or the token are missing, or the Hub refuses or cannot be reached. Nothing is published then.
    """
    paths = uploaded_files(Path(directory))
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository} is not the name of a repository; give OWNER/NAME")
    if get_token() is None:
        raise UserError("the Hub needs a token; set HF_TOKEN to one with write access (its settings list them)")
    contents = {path.name: _content(path, repository) for path in paths}
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    sizes = {operation.path_in_repo: operation.upload_info.size for operation in operations}
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        # An existing repository keeps its visibility, whatever the request asks for.
        if private and not api.model_info(repository).private:
            raise UserError(
                f"{repository} exists and is public; make it private in its settings, or leave --private out"
            )
        commit = api.create_commit(repository, operations, commit_message="Upload weights")
    except UserError:
        raise
    except Exception as error:  # the client's HTTP library has other errors in each release
        raise UserError(_mistake(repository, error)) from None
    return Upload(commit.commit_url, sizes)


def uploaded_files(directory: Path) -> list[Path]:
    """List the files of an exported directory that are uploaded.

    Raises:
        UserError: configuration or weights are missing.
    """
    export = "write it with `weights export`"
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; {export}")
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} holds no {CONFIG}; {export}")
    if (main := main_file(directory)) is None:
        raise UserError(f"{directory} holds none of {', '.join(MAIN)}; {export}")
    paths = {directory / CONFIG, main, *weight_files(main)}
    paths |= {path for pattern in ACCOMPANYING for path in directory.glob(pattern) if path.is_file()}
    if missing := sorted(path.name for path in paths if not path.is_file()):
        raise UserError(f"{directory} lacks {', '.join(missing)} of {main.name}; {export} again")
    return sorted(paths)


def _content(path: Path, repository: str) -> str | bytes:
    if path.name != CARD:
        return str(path)
    return path.read_bytes().replace(PLACEHOLDER.encode(), repository.encode())


def _mistake(repository: str, error: Exception) -> str:
    """Return one line for an error of the Hub's client."""
    if isinstance(error, errors.HFValidationError):
        return f"{repository} is not the name of a repository ({first_line(error)}); give another one"
    # Errors of the threads that upload files wrap the Hub's answer.
    cause = error
    while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        fact = f"{repository}: the upload to {constants.ENDPOINT} failed ({first_line(error)})"
        return f"{fact}; nothing was published, try again"
    reason = first_line(cause)
    if cause.response.status_code in (401, 403, 404):
        return f"{repository}: the Hub refused the upload ({reason}); set HF_TOKEN to one with write access to it"
    return f"{repository}: the Hub refused the upload ({reason}); nothing was published"
