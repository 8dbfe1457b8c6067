"""Download a file once. A broken download continues, and no file is used before it is complete."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def download(address: str, file: Path, check: Callable[[bytes], object]) -> None:
    """Download `address` to `file`, unless it is there.

    `check` raises ValueError for content that cannot be right. If the connection breaks,
    `file`.part stays, and the next call asks the server for the rest only. Raises
    FileNotFoundError, which says what to do by hand.
    """
    if file.is_file():
        return
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch(address, part)
        check(part.read_bytes())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ValueError):
            part.unlink()  # it is wrong, so no later call may continue it
        again = "the same command goes on where it broke off, or " if part.exists() else ""
        raise FileNotFoundError(
            f"cannot download {file.name} ({error}): "
            f"{again}fetch {address} by hand and give it with --data-path"
        ) from None
    part.replace(file)


def fetch(address: str, part: Path) -> None:
    """Append to `part` what it lacks, or replace it if the server sends all. Raises OSError."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is missing: `part` is complete
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        while block := response.read(1 << 16):
            file.write(block)
        if response.length:  # what the server announced and did not send
            raise ConnectionError(f"the connection broke, {response.length} bytes are missing")
