"""The files of a run folder: written whole or not at all, read without running code in them."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows: there a second process on a run folder is not refused
    fcntl = None


RANK = int(os.environ.get("RANK", 0))  # which of torchrun's processes this is


def fingerprint(network: torch.nn.Module) -> str:
    """Twelve hex digits that tell a network's weights from any others."""
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def checksum(content: dict) -> str:
    """Twelve hex digits that tell what a .json file should hold; a .pt file has its own."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def write_file(path: Path, content: dict) -> None:
    """Write a .pt or .json file beside the old, flush, rename: a stop leaves the old one whole.

    Of several processes only the first writes.
    """
    if RANK:
        return
    temporary, buffer = path.with_name(path.name + ".tmp"), io.BytesIO()
    if path.suffix == ".json":
        content = content | {"checksum": checksum(content)}
        buffer.write(json.dumps(content, indent=1).encode())
    else:
        torch.save(content, buffer)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"cannot write {path} ({reason}): make room, and start again") from None


def remove_file(path: Path) -> None:
    """Delete a file, if it is there; of several processes only the first does."""
    if not RANK:
        path.unlink(missing_ok=True)


def read_file(path: Path, build: Callable[[dict], object] = dict, of: list | None = None):
    """`build` of what write_file wrote; of another thing than `of` it is of no use.

    Raises FileNotFoundError, or ValueError for whatever is wrong with the file or does not fit,
    with what mends it.
    """
    again = "the train.py command of this folder, with this method, makes it"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: {again}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not look at them
            if archive.testzip():
                raise ValueError("a checksum is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if of is not None and content["of"] != of:
            raise ValueError(f"it is of {content['of']}, here is {of}")
        return build(content)
    except FileNotFoundError:  # of something else, that the file names
        raise
    except Exception as error:  # a damaged file raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # of which torch advises to allow it
            reason = "it holds more than weights"
        raise ValueError(f"{path} is of no use ({reason}): delete it, and {again} again") from None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, however it ends. Raises ValueError if another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:  # whatever it holds stays
        try:
            if fcntl and not RANK:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process writes {folder}: wait, or choose --out") from None
        yield


def open_results(folder: Path, names: Sequence[str], made_of: dict, force: bool) -> dict:
    """results.json of the folder if it is of this very run, else a new one.

    With `force` it is removed, and with it NAME.pt and checkpoint-NAME.pt. Raises ValueError if it
    is of a run made of other settings or data, or if one of these files is not of train.py.
    """
    path, new = folder / "results.json", {"made_of": made_of, "rows": []}
    files = [folder / f"{prefix}{name}.pt" for prefix in ("", "checkpoint-") for name in names]
    files = [file for file in (*files, path) if file.exists()]
    if not files or force and RANK:
        return new
    content = path.read_bytes() if path.exists() else b""
    if not content.startswith(b'{\n "made_of": {'):  # as write_file begins
        what = f"{', '.join(map(str, files))}: no results.json shows that this is of train.py"
        raise ValueError(f"{what}: choose --out, or move it away")
    if force:
        for file in files:  # results.json goes last: until then it shows whose the others are
            file.unlink(missing_ok=True)
        return new
    try:
        results = json.loads(content)
        if results.pop("checksum") != checksum(results):
            raise ValueError("its checksum is wrong")
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is of no use ({error!r}): start again with --force") from None
    known = results["made_of"]
    differ = [f"{k} {known.get(k)}, now {v}" for k, v in made_of.items() if known.get(k) != v]
    if differ:
        what = f"{folder} holds results of other settings ({', '.join(differ)})"
        raise ValueError(f"{what}: choose --out, or --force to replace them")
    return results
