"""Fetch a file once: what breaks off is gone on with, and nothing gets its name before it is whole and checked."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def download(address: str, file: Path, check: Callable[[bytes], object]) -> None:
    """Fetch `address` to `file`, unless it is there; `check` raises ValueError for content that cannot be right.

    A connection that breaks leaves `file`.part, and the next call asks the server for the rest only. Raises
    FileNotFoundError, which says what to do by hand.
    """
    if file.is_file():
        return
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            fetch(address, part)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not part.exists():  # 416: there is nothing behind what is there already
                raise
        check(part.read_bytes())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ValueError):
            part.unlink()  # or every later call would go on with it
        again = "the same command goes on where it broke off, or " if part.exists() else ""
        raise FileNotFoundError(
            f"cannot download {file.name} ({error}): {again}fetch {address} by hand and give it with --data-path"
        ) from None
    part.replace(file)


def fetch(address: str, part: Path) -> None:
    """Append to `part` what it lacks, or write it anew where the server sends everything. Raises OSError."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as response:
        with open(part, "ab" if response.status == 206 else "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
        if response.length:  # what the server announced and did not send
            raise ConnectionError(f"the connection broke, {response.length} bytes are missing")
