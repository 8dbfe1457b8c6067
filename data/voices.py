"""Voices of Tiny Shakespeare: the description says who speaks, the answer is what they say.

    description   Juliet, a young lady of Verona, a Capulet, ardent and tender, in a tragedy
    prompt        the end of what was said before, without any name
    answer        the next piece of her speech

voices.json holds `speakers`, {speaker: four descriptions}, the last of which is held out, and the
names of ten speakers that are held out whole, `unseen`, and of five more for `validation`.

Speeches come in blocks of 40. The last 4 of a block are held out, and the 4 before are for
validation. Training reads neither, also not as a prompt. So settings are chosen on what is
evaluated, new speeches and new speakers, but on none of the evaluated rows.

- `train`: each piece of speech once with each of the three known descriptions.
- `seen`: held-out speeches of trained speakers, with a known description.
- `new_wording`: the same, with the description that is held out.
- `unseen`: all speeches of the ten speakers.
- `validation`: all speeches of the five speakers, and the trained speakers' validation speeches.

The backbone is pretrained on the pieces that training reads, without names. The text (1.1 MB,
public domain) is not part of this project; without --data-path it is downloaded.

    python train.py --data voices --data-path tinyshakespeare.txt --preset voices

Answers are judged by their loss per token. Expect small differences: a piece of speech says little
about who speaks. Most of what an adapter gains on the frozen model, one without text gains too; the
right description is better than another speaker's, but by little.
"""

import json
from pathlib import Path

from data import Data, Record, download

FOLDER = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
ADDRESS = f"{FOLDER}input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CACHE = Path("out/tinyshakespeare.txt")
PIECE = 160  # characters of an answer, at most
BEFORE = 60  # characters of a prompt, at most
BLOCK = 40  # speeches
HELD_OUT = 4  # speeches at the end of a block, and as many before them for validation
PHRASES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SPEAKERS = PHRASES["speakers"]
UNSEEN = PHRASES["unseen"]
VALIDATION = PHRASES["validation"]


def pieces(text: str, size: int = PIECE) -> list[str]:
    """A speech in pieces of at most `size` characters, cut between lines.

    >>> pieces("To be,\\nor not\\nto be", 12)
    ['To be,', 'or not\\nto be']
    """
    found = []
    for line in text.split("\n"):
        if found and len(found[-1]) + 1 + len(line) <= size:
            found[-1] += f"\n{line}"
        else:
            found.append(line[:size])
    return [piece for piece in found if piece.strip()]


def split_of(number: int, name: str) -> str:
    """The split of a speech, from its number in the text and its speaker."""
    if name in UNSEEN:
        return "unseen"
    to_end = BLOCK - number % BLOCK  # of the block: 1 for its last speech
    if name in VALIDATION or HELD_OUT < to_end <= 2 * HELD_OUT:
        return "validation"
    return "seen" if to_end <= HELD_OUT else "train"


def load(path: str | None, seed: int) -> Data:
    """The data set, which is the same for every seed.

    Raises FileNotFoundError, or ValueError for a file that is not this text.
    """
    if path is None:
        download(ADDRESS, CACHE, SHA256)
    file = Path(path or CACHE)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: download {ADDRESS} and name it with --data-path")
    speeches = file.read_text(encoding="utf-8", errors="replace").split("\n\n")
    records = []
    documents = []
    before = ""  # the piece before this one, whoever spoke it
    before_split = ""
    for number, speech in enumerate(speeches):
        name, _, text = speech.strip().partition(":\n")
        split = split_of(number, name)
        for piece in pieces(text):
            # One line break, as a tokenizer may take two for one token, or cut between them.
            prompt = before[-BEFORE:].strip() + "\n"
            readable = split == before_split == "train"  # training may read prompt and piece
            if readable:
                documents.append(prompt + piece)
            if name in SPEAKERS and before and (readable or split != "train"):
                *known, held_out = SPEAKERS[name]
                chosen = known if split == "train" else [known[number % len(known)]]
                for description in chosen:
                    records.append(Record(name, description, prompt, piece, split))
                if split == "seen":
                    records.append(Record(name, held_out, prompt, piece, "new_wording"))
            before = piece
            before_split = split
    found = {record.context for record in records}
    if len(found) < len(SPEAKERS) // 2:
        raise ValueError(f"{file} is not the text of {ADDRESS}: it lacks most of the speakers")
    return Data("voices", records, documents, free_text=True)
