"""Zhyper, assembled: a description goes in, an adapted language model comes out.

    description --cut--> statements --Encoder, trunk--> c --hypernetwork--> {site: update}
    question --frozen GPT, with an update at each site--> answer

python zhyper.py chat                                            # describe, then ask
python zhyper.py explain --description "..." --question "..."    # every stage on the way
python zhyper.py export --description "..." --to FOLDER          # a real model's adapter, for peft
"""

import argparse
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from data import PROMPT
from data.batches import Rows, answer_positions, join, pad
from data.pretrained import write_adapter
from data.tokenizer import decode_answer, encode, encode_answers, tokenizer_from_json
from hyper import HYPERNETWORKS, Adapter, HyperConfig, Hypernetwork
from model import GPT, Encoder, EncoderConfig, ModelConfig

# For each question a text, or a row of c, (b, d_c). None: the frozen model answers all of them.
Descriptions = Sequence[str] | Tensor | None
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)  # cuda, mps or None
DEVICES = [ACCELERATOR.type, "cpu"] if ACCELERATOR else ["cpu"]
MOST_STATEMENTS = 64  # of a description
SHIPPED = "assets/cultures-default"  # the folder of a trained run that comes with the code


# ---- texts


def split_statements(text: str) -> list[str]:
    """A text cut at the ends of sentences and lines, at semicolons, and at commas.

    An "and" after the cut is left out. A mark inside a word, as in 1,000, cuts nothing, nor does a
    full stop after a single capital letter, as in U.S.

    >>> split_statements("In this land people bow, tea is cold, and a queen rules. Nobody sings!")
    ['In this land people bow', 'tea is cold', 'a queen rules', 'Nobody sings']
    """
    full_stop = r"(?<!\b[A-Z])\."  # (?<!...): no single capital letter stands before it
    marks = rf"(?:[,;!?]|{full_stop})+(?=\s|$)"  # (?=...): a space or the text's end follows
    parts = []
    for part in re.split(rf"{marks}|\n", text):
        part = re.sub(r"^\s*and\s", "", part, flags=re.IGNORECASE)
        if any(map(str.isalnum, part)):
            parts.append(part.strip())
    return parts


def number_distinct(items: Iterable[Hashable]) -> dict:
    """A number for each different item, in the order of their first places.

    >>> number_distinct(["bow", "sing", "bow"])
    {'bow': 0, 'sing': 1}
    """
    return {item: number for number, item in enumerate(dict.fromkeys(items))}


def words_of(text: str) -> list[str]:
    """Its words in small letters, each once: ["people", "bow"]."""
    return list(dict.fromkeys(re.findall(r"\w+", text.lower())))


def check_list(what: str, texts: Descriptions) -> None:
    """Raise ValueError for one text in place of a list, which would be read letter by letter."""
    if isinstance(texts, str):
        raise ValueError(f"{what} must be a list of texts, not one: write [{texts[:20]!r}]")


# ---- the system


class Zhyper(nn.Module):
    """A whole system, of whatever method: a frozen GPT, and what adapts it to a text.

    The hypernetwork is any of hyper.HYPERNETWORKS, also LoRA's or Text-to-LoRA's, and the encoder
    makes the embeddings that it reads. Without a hypernetwork the GPT stays as it is. A variable
    called `system` holds one of these, in all files.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: GPT,
        encoder: Encoder | None = None,
        encoder_tokenizer: Tokenizer | None = None,  # None: the backbone's
        encoder_frozen: bool = False,  # True: each statement is embedded once and kept
        description_in_prompt: bool = False,  # True: the backbone reads it before the question
        trained_words: Sequence[str] = (),  # all words of the descriptions of training
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.backbone = backbone.requires_grad_(False)
        self.encoder = encoder
        self.hypernetwork: Hypernetwork | None = None
        self.encoder_tokenizer = encoder_tokenizer or tokenizer
        self.encoder_frozen = encoder_frozen
        if encoder_frozen:
            encoder.requires_grad_(False)
        self.description_in_prompt = description_in_prompt
        self.trained_words = set(trained_words)
        self.embeddings: dict[str, Tensor] = {}  # {statement: (d_text,)} of a frozen encoder

    @property
    def device(self) -> torch.device:
        return self.backbone.embed_tokens.weight.device

    @property
    def lowest_layer(self) -> int:
        """The lowest layer that is adapted. What is below it is the same for all descriptions."""
        return self.hypernetwork.config.lowest_layer if self.hypernetwork else 0

    def add_hypernetwork(self, config: HyperConfig) -> None:
        """Put a fresh hypernetwork between this encoder, if there is one, and this backbone."""
        sizes = self.backbone.config
        if not 0 <= config.lowest_layer < sizes.layers:
            problem = f"lowest_layer is {config.lowest_layer}, and there are {sizes.layers} layers"
            raise ValueError(f"{problem}: choose 0 to {sizes.layers - 1}")
        layers = sizes.layers - config.lowest_layer
        d_text = self.encoder.config.width if self.encoder else 0
        kind = HYPERNETWORKS[config.kind]
        self.hypernetwork = kind(config, layers, sizes.shapes, d_text).to(self.device)
        self.hypernetwork.take_backbone(self.backbone)

    # ---- from a text to an adapter

    def parts_of(self, description: str) -> list[str]:
        """What of a text is embedded: each of its statements, or the whole text as the paper does.

        Only for a method that reads texts, since others have no trunk. Raises ValueError for a text
        without a statement, or with too many.
        """
        if not self.hypernetwork.trunk.reads_statements:
            return [description]
        statements = split_statements(description)
        if not 0 < len(statements) <= MOST_STATEMENTS:
            problem = f"the description {description[:40]!r} has {len(statements)} statements"
            raise ValueError(f"{problem}: write 1 to {MOST_STATEMENTS}")
        return statements

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """c of each description, (b, d_c): what the trunk reads of its parts, added up.

        Raises ValueError for a text that is empty, too long or not known to the tokenizer.
        """
        check_list("descriptions", descriptions)
        parts = [self.parts_of(text) for text in descriptions]
        # c of a text with n parts is Σ read(e of the part) / √n. This is a product of matrices, so
        # that a part is embedded and read only once, in however many texts it stands. Of the texts
        # "people bow, tea is cold" and "tea is cold" the factors are [[1/√2, 1/√2], [0, 1]].
        index_of = number_distinct(itertools.chain(*parts))
        factors = torch.zeros(len(parts), len(index_of))  # (b, n): of each part in each text
        for i, parts_of_text in enumerate(parts):
            for part in parts_of_text:
                factors[i, index_of[part]] += 1 / len(parts_of_text) ** 0.5
        e = self.embed_parts(list(index_of))  # (n, d_text)
        return factors.to(self.device) @ self.hypernetwork.trunk.read(e)  # (b, n) @ (n, d_c)

    def embed_parts(self, parts: Sequence[str]) -> Tensor:
        """The embedding of each part, (n, d_text); a frozen encoder's are kept."""
        if not self.encoder_frozen:
            return self.run_encoder(parts)
        new = [part for part in parts if part not in self.embeddings]
        if new:
            self.embeddings.update(zip(new, self.run_encoder(new), strict=True))
        return torch.stack([self.embeddings[part].to(self.device) for part in parts])

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """The token ids of each part; raises ValueError as `embed` does."""
        what = "statement" if self.hypernetwork.trunk.reads_statements else "description"
        longest = self.encoder.config.block_size
        return encode(self.encoder_tokenizer, parts, what, longest=longest)

    def run_encoder(self, texts: Sequence[str]) -> Tensor:
        """The embedding of each text, (n, d_text)."""
        rows = self.encode_parts(texts)
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad(rows)  # (n, t)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (n, t), false at padding
        return self.encoder(ids.to(self.device), mask.to(self.device))

    def adapt(self, descriptions: Descriptions) -> Adapter:
        """The update of every site; where it differs between texts, row i is for descriptions[i].

        c of `embed` may stand in place of texts: adapt(torch.lerp(c1, c2, 0.3)) generates for a
        point between two of them. None gives no update, so the frozen model, whatever the method.
        """
        if self.hypernetwork is None or descriptions is None:
            return {}
        if isinstance(descriptions, Tensor):
            return self.hypernetwork(descriptions)
        check_list("descriptions", descriptions)
        # each text is embedded, and its update generated, once; then every row looks up its own
        index_of = number_distinct(descriptions)
        c = self.embed(list(index_of)) if self.hypernetwork.reads_text else None
        adapter = self.hypernetwork(c)
        index = torch.tensor([index_of[text] for text in descriptions], device=self.device)  # (b,)
        return {site: update.take(index) for site, update in adapter.items()}

    # ---- from an adapter to a loss

    def prompts(self, questions: Sequence[str], descriptions: Descriptions) -> list[str]:
        """What the backbone reads before it answers, for each question.

        Raises ValueError unless there are questions, and one description for each of them.
        """
        check_list("questions", questions)
        check_list("descriptions", descriptions)
        count = len(questions) if descriptions is None else len(descriptions)
        if not questions or count != len(questions):
            problem = f"{len(questions)} questions, {count} descriptions"
            raise ValueError(f"{problem}: give one description for each question")
        prompts = [PROMPT.format(question) for question in questions]
        if descriptions is None or not self.description_in_prompt:
            return prompts
        if isinstance(descriptions, Tensor):
            raise ValueError("this method reads descriptions in the prompt: give texts")
        pairs = zip(descriptions, prompts, strict=True)
        return [f"{description}\n{prompt}" for description, prompt in pairs]

    def encode_rows(self, prompts: Sequence[str], answers: Sequence[str]) -> Rows:
        """What the backbone reads and predicts. Raises ValueError for a text that is too long."""
        config = self.backbone.config
        # [(ids of a prompt, ids of its answer), ...]
        pairs = encode_answers(self.tokenizer, prompts, answers, config.block_size)
        return join(pairs, config.eos[0])

    def hidden_states(self, ids: Tensor) -> Tensor:
        """What the lowest adapted layer reads, (b, t, d), of ids (b, t): no text changes it."""
        x = self.backbone.embed_tokens(ids.to(self.device))
        if self.lowest_layer:
            x = self.backbone.run_layers(x, {}, end=self.lowest_layer)
        return x

    @torch.no_grad()
    def with_hidden_states(self, rows: Rows) -> Rows:
        """The rows with their hidden states, computed once for a whole training.

        There are few of them: rows differ only in question and answer, whatever the description.
        In two cases they are returned as they are: if the lowest adapted layer is the first, since
        below it there is only a look-up, and if descriptions stand in prompts, since there are too
        many rows then to keep.
        """
        if not self.lowest_layer or self.description_in_prompt:
            return rows
        parts = [self.hidden_states(ids) for ids in rows.ids.split(64)]
        return rows._replace(hidden_states=torch.cat(parts))

    def logits(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, vocab_size): the backbone's, with all its end tokens taken as the first.

        The small backbone has one end token, so these are its logits as they are. A real model may
        have several. Whichever it writes, the answer has ended; so training, scoring and generation
        see one end token, as probable as all of them together.
        """
        logits = self.backbone.logits(x)
        first, *others = self.backbone.config.eos
        if others:
            together = logits[:, [first, *others]].logsumexp(-1)  # (n,): of the sum of their exp
            logits = logits.index_fill(1, torch.tensor(others, device=self.device), -torch.inf)
            logits[:, first] = together
        return logits

    def forward(self, rows: Rows, descriptions: Descriptions) -> tuple[Tensor, Tensor]:
        """Of each row the loss of its answer and end token (nats), and if it is exact: (b,) each.

        A row is a prompt, its answer and an end token: rows.ids (b, t). It is exact if each token
        of its answer, and the end token, is the likeliest. Greedy decoding would then write exactly
        this answer; one pass is enough to know.
        """
        adapter = self.adapt(descriptions)
        x = rows.hidden_states  # (b, t, d): what the lowest adapted layer reads
        if x is None:
            x = self.hidden_states(rows.ids)
        # A token predicts the next one. Two rows, | before the answer, E the end token, - padding:
        #     ids         a b c | X E -   and   a b | X Y Z E
        #     positions       2   3 . .     and     1   2 3 4     . where the mask is false
        #     targets             X E . .   and         X Y Z E
        # (b, p) each, where the longest answer has p tokens with its end
        positions, mask = answer_positions(rows)
        targets = rows.ids.gather(1, positions + 1)  # (b, p); of no use where the mask is false
        positions, mask, targets = [each.to(self.device) for each in (positions, mask, targets)]
        # of the last layer only these positions are computed
        x = self.backbone.run_layers(x, adapter, start=self.lowest_layer, positions=positions)
        logits = self.logits(x[mask])  # (b, p, d) -> (n, d) -> (n, vocab_size)
        loss = torch.zeros(mask.shape, device=self.device)  # (b, p)
        loss[mask] = F.cross_entropy(logits, targets[mask], reduction="none")
        right = torch.ones_like(mask)  # (b, p)
        right[mask] = logits.argmax(-1) == targets[mask]
        return loss.sum(1), right.all(1)

    def score(
        self, questions: Sequence[str], answers: Sequence[str], descriptions: Descriptions
    ) -> tuple[Tensor, Tensor]:
        """Loss and exactness of each answer, (b,) each, as `forward` has them."""
        prompts = self.prompts(questions, descriptions)
        return self(self.encode_rows(prompts, answers), descriptions)

    # ---- from an adapter to an answer

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[str],
        descriptions: Descriptions = None,
        max_new_tokens: int = 32,
    ) -> list[str]:
        """The likeliest answer to each question, token by token, each under its own description.

        A row ends with an end token, after max_new_tokens, or when it is full. Leaves the system in
        eval mode. Raises ValueError for texts that are too long.
        """
        config = self.backbone.config
        eos = config.eos[0]
        prompts = self.prompts(questions, descriptions)
        longest = config.block_size - 1  # so that there is room for a token of the answer
        prompt_ids = encode(self.tokenizer, prompts, "prompt", longest=longest, more_follows=True)
        rows = [list(ids) for ids in prompt_ids]  # they grow by a token in each round
        adapter = self.eval().adapt(descriptions)
        for _ in range(max_new_tokens):
            last = torch.tensor([[len(row) - 1] for row in rows], device=self.device)  # (b, 1)
            x = self.backbone.embed_tokens(pad(rows).to(self.device))  # (b, t, d)
            x = self.backbone.run_layers(x, adapter, positions=last)  # (b, 1, d)
            tokens = self.logits(x[:, 0]).argmax(-1).tolist()  # the likeliest token of each row
            for row, token in zip(rows, tokens, strict=True):  # one that has ended stays as it is
                if row[-1] != eos and len(row) < config.block_size:
                    row.append(token)
            if all(row[-1] == eos for row in rows):
                break
        answers = []
        for ids, row in zip(prompt_ids, rows, strict=True):
            answer = [token for token in row[len(ids) :] if token != eos]
            # (with the prompt, since some tokenizers drop the space before a text's first word)
            answers.append(decode_answer(self.tokenizer, ids, answer))
        return answers

    # ---- one description's adapter on its own: its size, merged, exported

    @torch.no_grad()
    def adapter_of(self, description: str) -> Adapter:
        """One description's adapter. Raises ValueError for a method that makes none from a text."""
        if self.hypernetwork is None or not self.hypernetwork.reads_text:
            raise ValueError("this method generates no adapter from a text: choose one that does")
        return self.eval().adapt([description])

    def relative_norms(self, adapter: Adapter) -> dict[tuple[int, str], float]:
        """‖ΔW‖/‖W‖ of every site, for one description: how far it moves the weights."""
        norms = {}
        for site, update in adapter.items():
            ratio = update.delta().norm() / self.backbone.linear(*site).weight.norm()
            norms[site] = ratio.item()
        return norms

    def merge(self, description: str) -> GPT:
        """A plain GPT with the weights W + ΔW: as large and as fast as the frozen one."""
        merged = deepcopy(self.backbone)
        merged.pretrained_name = None  # it is that model no longer
        for site, update in self.adapter_of(description).items():
            merged.linear(*site).weight.data += update.delta()
        return merged.eval()

    def export(self, description: str, to: str) -> None:
        """Write one description's adapter into the folder `to`, for peft, with A' = Z A and B' = B.

        Raises ValueError for a backbone of our own, without safetensors, and for a folder that
        exists.
        """
        if not self.backbone.pretrained_name:
            problem = "peft cannot load this small backbone"
            raise ValueError(f"{problem}: train with a real --backbone, or use `merge` in Python")
        adapter = self.adapter_of(description)
        write_adapter(Path(to), adapter, self.backbone.pretrained_name)

    # ---- files

    def save(self, path: Path, checkpoint: dict | None = None) -> None:
        """Write the whole system into one file; of real models, which are always frozen, the name.

        `checkpoint` is what an unfinished training needs to go on (`train_loop` in train.py).
        """
        content = {
            "tokenizer": self.tokenizer.to_str(),
            "encoder_tokenizer": self.encoder_tokenizer.to_str(),
            "encoder_frozen": self.encoder_frozen,
            "description_in_prompt": self.description_in_prompt,
            "trained_words": sorted(self.trained_words),
            "checkpoint": checkpoint,
        }
        for part, network in self.named_children():  # backbone, and encoder and hypernetwork if any
            name = getattr(network, "pretrained_name", None)
            if name:
                content[part] = {"pretrained_name": name}
            else:
                content[part] = {"config": asdict(network.config), "weights": network.state_dict()}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_file(path, buffer.getvalue())

    @classmethod
    def from_file(cls, path: Path) -> tuple["Zhyper", dict | None]:
        """What `save` wrote: the system, and its checkpoint. No code in the file is run.

        Raises FileNotFoundError, or ValueError for a file that is damaged or of other code.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: choose another run or method, or train one")

        def build(part: dict | None, kind: type, config: type) -> nn.Module | None:
            if part is None:
                return None
            if "pretrained_name" in part:
                return kind.from_pretrained(part["pretrained_name"])
            return kind(config(**part["config"]))

        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            system = cls(
                tokenizer=tokenizer_from_json(saved["tokenizer"]),
                backbone=build(saved["backbone"], GPT, ModelConfig),
                encoder=build(saved.get("encoder"), Encoder, EncoderConfig),
                encoder_tokenizer=tokenizer_from_json(saved["encoder_tokenizer"]),
                encoder_frozen=saved["encoder_frozen"],
                description_in_prompt=saved["description_in_prompt"],
                trained_words=saved["trained_words"],
            )
            if "hypernetwork" in saved:
                system.add_hypernetwork(HyperConfig(**saved["hypernetwork"]["config"]))
            for part, network in system.named_children():
                if "weights" in saved[part]:
                    network.load_state_dict(saved[part]["weights"])
            return system, saved["checkpoint"]
        except (FileNotFoundError, ValueError):  # a pretrained model that is not there
            raise
        except Exception as error:  # a damaged file raises many kinds
            problem = f"{path} is damaged or of other code ({error!r:.80})"
            raise ValueError(f"{problem}: train it again") from None

    @classmethod
    def load(cls, run: str | Path, method: str = "zhyper-diag", device: str = "cpu") -> "Zhyper":
        """A trained method of a run folder, for use. Raises as `from_file` does."""
        system, _ = cls.from_file(Path(run) / f"{method}.pt")
        return system.to(device).requires_grad_(False).eval()


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside the old one, then rename it: a stop leaves the old one whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- the command line: a function for each command, whose docstring is its help

USAGE = """/describe TEXT  answer as it says; before that, both answers are the frozen model's
/quit           leave
anything else   a question"""


def probability_text(
    system: Zhyper, question: str, answer: str, descriptions: list[str] | None
) -> str:
    """How probable an answer is, as "(0.83)"; "" if it is empty or leaves no room for its end."""
    try:
        loss, _ = system.score([question], [answer], descriptions)
    except ValueError:
        return ""
    return f"({(-loss).exp().item():.2f})"


def print_answers(system: Zhyper, question: str, description: str | None) -> None:
    """The frozen and the adapted answer, each with the probability that its model gives it."""
    for name, text in (("frozen:", None), ("adapted:", description)):
        descriptions = None if text is None else [text]
        (answer,) = system.generate([question], descriptions)
        print(f"{name:9}{answer}   {probability_text(system, question, answer, descriptions)}")


def print_new_words(system: Zhyper, description: str) -> None:
    """Name the words that training never had: only a pretrained encoder may understand them."""
    new = [word for word in words_of(description) if word not in system.trained_words]
    if new and system.encoder and not system.encoder_frozen:
        print("new words:", ", ".join(new))


@torch.no_grad()
def chat(system: Zhyper, args) -> None:
    """describe somebody, then ask; the frozen and the adapted answer, and how probable each is"""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (importing it makes the arrow keys work)
    print(USAGE)
    description = None
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, text = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/describe":
                norms = system.relative_norms(system.adapt([text])).values()
                description = text
                print_new_words(system, text)
                print(f"‖ΔW‖/‖W‖ at {len(norms)} sites, at most {max(norms, default=0):.3f}")
            elif not line or command.startswith("/"):
                print(USAGE)
            else:
                print_answers(system, line, description)
        except ValueError as error:  # the user's to mend; the conversation goes on
            print("error:", error)


@torch.no_grad()
def explain(system: Zhyper, args) -> None:
    """every stage between a description and an answer, with its shape and its size"""
    question = args.question
    text = args.description
    adapter = system.adapter_of(text)
    parts = system.parts_of(text)
    print_new_words(system, text)
    print("e ", tuple(system.embed_parts(parts).shape), "an embedding of each:", " | ".join(parts))
    print("c ", tuple(system.embed([text]).shape), "what the trunk reads of them, added up")
    norms = system.relative_norms(adapter)
    for site, update in adapter.items():
        generated = update.B if update.z is None else update.z
        start = " ".join(f"{number:6.2f}" for number in generated.flatten()[:6].tolist())
        print("layer", *site, tuple(generated.shape), start, f"...  ‖ΔW‖/‖W‖ {norms[site]:.3f}")
    print_answers(system, question, text)
    (answer,) = system.generate([question], [text])
    for part in parts:
        others = [other for other in parts if other != part]
        if others:
            number = probability_text(system, question, answer, ["; ".join(others)])
            print(f"  {number} without: {part}")


def export(system: Zhyper, args) -> None:
    """write the adapter of one description as a folder for the peft library"""
    system.export(args.description, args.to)
    print(f"written to {args.to}")


HELP = {
    "description": "the text to adapt to",
    "question": "what to ask",
    "to": "the folder to write",
}
COMMANDS = [  # each with the options that it needs
    (chat, []),
    (explain, ["description", "question"]),
    (export, ["description", "to"]),
]


def run_command(parser: argparse.ArgumentParser, command: Callable[[], None]) -> None:
    """Run a command; what is the user's to mend becomes a line, with exit code 2."""
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter's has no such method
        sys.stdout.reconfigure(errors="replace")  # Windows may not be able to write a Δ
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description="Use what python train.py has trained.")
    commands = parser.add_subparsers(required=True)
    for function, needed in COMMANDS:
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--run", default=SHIPPED, help="the run folder")
        command.add_argument("--method", default="zhyper-diag", help="one of its methods")
        command.add_argument("--device", default="cpu", choices=DEVICES)
        for option in needed:
            command.add_argument(f"--{option}", required=True, help=HELP[option])
    args = parser.parse_args()

    def load_and_run() -> None:
        args.function(Zhyper.load(args.run, args.method, args.device), args)

    run_command(parser, load_and_run)


if __name__ == "__main__":
    main()
