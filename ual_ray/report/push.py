"""`ual push`: upload an arm's model with its card and verdicts, and the scored data set, to a model hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import yaml
from rich.console import Console

from ual_ray import __version__
from ual_ray import columns as col
from ual_ray.config.experiment import ELICIT_FOLDER
from ual_ray.config.files import read_json
from ual_ray.config.redact import redact_uri
from ual_ray.errors import UserError
from ual_ray.formatting import count, gib, plural
from ual_ray.report.findings import Findings
from ual_ray.report.gather import find_elicitation
from ual_ray.report.judged import judged_verdicts
from ual_ray.report.promote import check_compared, describe, read_findings, trained_folder
from ual_ray.run.output import recorded_config
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.primary import CHOSEN_AFTER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
# Behind the name of the model's repository: that of the data set.
SCORED = "-scored"
LONGEST_NAME = 96 - len(SCORED)
TOKEN = "HF_TOKEN"  # noqa: S105 - its name
DEFAULT_ENDPOINT = "https://huggingface.co"
LOCAL = ("localhost", "127.0.0.1", "::1")
# What an earlier push with more shards has left, and what would be read with the new ones.
SHARDS = (".safetensors", ".safetensors.index.json", ".parquet")
COLUMNS = (
    f"Chats in `{col.MESSAGES}` with `{col.UNCERTAINTY}`, in [0, 1]: higher = more uncertain, null = not measured. The columns "
    f"`{col.uncertainty_column('*')}` are those of single estimators."
)


@dataclass(frozen=True)
class Upload:
    """A repository of a hub, and its files: the path in it, and the file or the content."""

    repository: str
    kind: Literal["model", "dataset"]
    files: Mapping[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by path."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in sorted(self.files.items())
        }


def gather(run: Path, repository: str, arm: str, *, data: bool = True) -> list[Upload]:
    """Gather what is pushed of a run: the arm's model to `repository`, and the scored data set to `repository`-scored.

    Raises UserError for a name that hubs do not take, when the arm has no verdict, no finished training or no card, when its
    model is not the one that the report compared, and when there are no scored rows.
    """
    check_name(repository)
    findings = read_findings(run)
    verdicts = _verdicts(arm, findings)
    trained = trained_folder(run, arm, findings)
    check_compared(run, arm, trained, findings)
    folder = trained / col.MODEL_FOLDER
    if not (folder / CARD).is_file():
        raise UserError("the model has no card", got=folder / CARD, fix="train it again with `ual run`")
    card = _without_place((folder / CARD).read_text(encoding="utf-8"), recorded_config(run).get("model"))
    files = _files(folder, folder.rglob("*"), "") | {CARD: _text(f"{card.rstrip()}\n\n## Verdicts\n\n{_listed(verdicts)}")}
    return [Upload(repository, "model", files), *([_data_set(run, findings, repository + SCORED)] if data else [])]


def _without_place(card: str, model: str | None) -> str:
    """Name a base model that is a directory by its name alone: where it is on this machine is nobody else's business."""
    return card.replace(model, Path(model).name) if model and Path(model).is_absolute() else card


def check_name(repository: str) -> None:
    """Raise UserError for what is not OWNER/NAME as hubs take it, with room for the name of the data set."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        validate_repo_id(repository + SCORED)
        reason = "" if "/" in repository else ": the owner is missing"
    except HFValidationError as error:
        reason = f": {error}"
    if reason:
        raise UserError(
            "hubs do not take this name of a repository",
            got=f"{repository!r}{reason}",
            expected=f"OWNER/NAME of ASCII letters, digits, '-', '_' and '.', NAME of at most {LONGEST_NAME} of them",
            fix="give another name",
        )


def _verdicts(arm: str, findings: Findings) -> list[str]:
    """Word all verdicts on an arm, the judge's among them. Raises UserError where there is none."""
    judged = [x for x in judged_verdicts(findings) if x.rate.arm == arm]
    verdicts = [describe(entry) for entry in findings.comparisons.entries if entry.arm == arm]
    verdicts += [f"win rate at equal lengths: {x.sentence()}" for x in judged]
    if not verdicts:
        arms = ", ".join(sorted({entry.arm for entry in findings.comparisons.entries}))
        raise UserError(f"the report has no verdict on the arm '{arm}'", expected=arms or None, fix="name an arm with --arm")
    if findings.comparisons.chosen_after:
        verdicts.append(f"the primary measures, {', '.join(findings.comparisons.primary)}, were {CHOSEN_AFTER}")
    return verdicts


def push(uploads: Sequence[Upload], endpoint: str | None, console: Console, *, public: bool = False) -> None:
    """Upload to a hub (None: huggingface.co) with the token in HF_TOKEN, and print where to; files that are there stay.

    Raises UserError without a token, for an address to which it would travel unencrypted, for a repository that is public
    and should not be, and when the hub refuses.
    """
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN)
    if not token:
        raise UserError(f"{TOKEN} is not set", fix=f"export {TOKEN}=... with write access, or use --dry-run")
    where = urlsplit(endpoint or DEFAULT_ENDPOINT)
    if where.scheme != "https" and where.hostname not in LOCAL:
        raise UserError("the hub's address would get the token unencrypted", got=redact_uri(str(endpoint)), expected="https://")
    api = HfApi(endpoint=endpoint, token=token)
    for upload in uploads:
        try:
            url = _send(api, upload, public)
        except UserError:
            raise
        except Exception as error:  # of huggingface_hub and of its HTTP client
            raise UserError(
                f"the hub did not take {upload.repository}",
                got=redact_uri(f"{error}".strip()),
                fix=f"check that {TOKEN} may write to it, then run the command again",
            ) from error
        console.print(f"{upload.kind} {upload.repository}: {redact_uri(url)}", highlight=False, markup=False)


def show(uploads: Sequence[Upload], console: Console, *, public: bool = False) -> None:
    """Print what would be uploaded."""
    for upload in uploads:
        seen, sizes = "public" if public else "private", upload.sizes
        lines = [f"{upload.kind} {upload.repository} ({seen}): {plural(len(sizes), 'file')}, {gib(sum(sizes.values()))}"]
        lines += [f"  {count(length):>15} bytes  {name}" for name, length in sizes.items()]
        console.print("\n".join(lines), highlight=False, markup=False)


def _send(api: HfApi, upload: Upload, public: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    about: dict[str, Any] = {"repo_id": upload.repository, "repo_type": upload.kind}
    api.create_repo(**about, private=not public, exist_ok=True)
    found: Any = api.repo_info(**about)
    if not public and not found.private:
        raise UserError("the repository is public", got=upload.repository, fix="make it private, or push with --public")
    there = {file.rfilename for file in found.siblings or ()}
    stale = [name for name in sorted(there - upload.files.keys()) if name.endswith(SHARDS)]
    operations: list[Any] = [
        *(CommitOperationAdd(name, file) for name, file in upload.files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
    return str(api.create_commit(**about, operations=operations, commit_message=f"Upload by ual_ray {__version__}").commit_url)


def _data_set(run: Path, findings: Findings, repository: str) -> Upload:
    folder = find_elicitation(run, findings.folders) or run / ELICIT_FOLDER
    done, scored = read_json(folder / DONE_FILE), folder / col.SCORED_FOLDER
    files = _files(scored, scored.rglob("*.parquet"), "data/")
    if done is None or not files:
        raise UserError(
            "the run has no scored rows", got=scored, fix="finish `ual run`, or push the model alone with --no-data"
        )
    figures = done["figures"]
    header = {"tags": ["uncertainty", "ual_ray"], "configs": [{"config_name": "default", "data_files": "data/*.parquet"}]}
    facts = [f"{name}: {figures[name]}" for name in ("rows", "quarantined", "uncertainty", "prompt_hashes") if name in figures]
    title = f"# Rows scored by uncertainty\n\nMade with ual_ray {__version__}. {COLUMNS}"
    return Upload(
        repository, "dataset", files | {CARD: _text(f"---\n{yaml.safe_dump(header)}---\n\n{title}\n\n{_listed(facts)}")}
    )


def _files(folder: Path, found: Iterable[Path], prefix: str) -> dict[str, Path | bytes]:
    """Name files by their path in a folder. Raises UserError for links, which may lead out of it."""
    files: dict[str, Path | bytes] = {}
    for file in sorted(found):
        if file.is_symlink():
            raise UserError("a link is not pushed", got=file, fix="replace it by the file")
        if file.is_file():
            files[f"{prefix}{file.relative_to(folder).as_posix()}"] = file
    return files


def _listed(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _text(text: str) -> bytes:
    return redact_uri(text).encode()
