"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data; make a tokenizer and a small backbone, or take a real model
2. encode everything that will be read; pretrain the backbone, then freeze it
3. train each method through the frozen backbone
4. evaluate every split, and one of them with the description swapped, random and absent

python train.py                                    # invented cultures
python train.py --preset smoke                     # the same, smaller, in half a minute
python train.py --data votes                       # real votes of the United Nations
python train.py --data votes --preset real         # with a real backbone and a real encoder
python train.py --resume out/cultures-default      # go on with a run that was stopped
"""

import argparse
import json
import math
import random
import string
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import SPLITS, Data, Record, load
from data.batches import Rows, draw, pack
from data.pretrained import read_tokenizer
from data.tokenizer import encode, train_tokenizer
from hyper import HYPERNETWORKS, TRUNKS, HyperConfig
from model import GPT, MODULES, Encoder, EncoderConfig, ModelConfig
from zhyper import DEVICES, Zhyper, number_distinct, run_command, words_of, write_file

BLOCK_SIZE = 256  # the longest text of the small networks, in tokens
HEADS = 4  # of their attention
PRETRAIN_ROWS, PRETRAIN_TOKENS = 8, 128  # of a step of pretraining
LOG_EVERY = 50  # steps from one line of the log, and checkpoint, to the next


# ---- the options: a method and a preset are changes of them


def option(default, text: str):
    """A field of Config, with the help that the command line shows for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """Everything that the training of one method depends on. A field with a help is an option.

    Raises ValueError for a value that is impossible.
    """

    data: str = option("cultures", "cultures, votes, atlas, or a file.jsonl of your own records")
    data_path: str | None = option(None, "the folder of the atlas, if it is not to be downloaded")
    contexts: int | None = option(None, "how many contexts to train on; None: the data set's own")
    stated: int | None = option(None, "how much a description of cultures states; None: 4")
    wording: str | None = option(None, "of votes: verbs, plain, or None for both (see votes.py)")
    seed: int = option(0, "the start of everything random")
    device: str = option(DEVICES[0], f"of this machine's: {', '.join(DEVICES)}")

    backbone: str | None = option(None, "a pretrained Llama: its folder, or its name on the hub")
    layers: int = option(4, "of the small backbone")
    width: int = option(128, "of the small backbone and the small encoder")
    vocab_size: int = option(2048, "of their tokenizer")
    pretrain_steps: int = option(250, "of the small backbone")
    pretrain_lr: float = option(4e-3, "its peak learning rate")

    encoder: str | None = option(None, "a pretrained BERT, which stays frozen: its folder or name")
    encoder_layers: int = option(0, "of attention, of the small encoder")

    # (kind, description_in_prompt and lr_scale are no options: METHODS and PRESETS set them)
    kind: str | None = None  # a key of hyper.HYPERNETWORKS; None: nothing is trained
    description_in_prompt: bool = False  # the backbone reads the description before the question
    rank: int = option(32, "of every update")
    scale: float = option(2.0, "of every update: alpha / rank")
    modules: str = option("q,k,v,o", f"which linear layers are adapted, of {','.join(MODULES)}")
    lowest_layer: int = option(2, "the lowest adapted layer: what is below is computed only once")
    trunk: str = option("gated", f"{' or '.join(TRUNKS)}")
    features: int = option(224, "width of the gated trunk's features")
    narrow: int = option(64, "width of the layer before them")
    reading: str = option("statements", "of the gated trunk: statements, or text for whole texts")
    noise: float = option(0.0, "added in training to standardised embeddings: its std")

    steps: int = option(800, "of training")
    lr: float = option(2e-3, "peak learning rate; three times that for A, B and the small encoder")
    lr_scale: float = 1.0  # a preset's factor: t2l has 5e-4, and in the preset votes 5e-4 · 0.5
    descriptions_per_step: int = option(32, "how many descriptions a step reads")
    questions_per_description: int = option(4, "how many questions it asks about each, at most")
    evaluate: int | None = option(None, "how many records of a split are evaluated; None: all")

    def __post_init__(self):
        check_choice("trunk", self.trunk, TRUNKS)
        check_choice("reading", self.reading, ["statements", "text"])
        check_choice("device", self.device, DEVICES)
        modules = self.modules.split(",")
        for module in modules:
            check_choice("module", module, MODULES)
        if len(set(modules)) < len(modules):
            raise ValueError(f"modules is {self.modules!r}: name each once")
        if self.width % (2 * HEADS):  # rotary positions take the numbers of a head in pairs
            raise ValueError(f"width is {self.width}: choose a multiple of {2 * HEADS}")
        may_be_zero = ("seed", "encoder_layers", "lowest_layer", "noise")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if type(value) in (int, float) and value <= 0 and setting.name not in may_be_zero:
                raise ValueError(f"{setting.name} is {value}: it must be more than 0")


def check_choice(what: str, name: str, known) -> None:
    """Raise ValueError, which says what is known, if `name` is not."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose from {', '.join(known)}")


# Ranks and rates are those that suit each best; zhyper-diag has Config's, 32 and 2e-3, as a higher
# rank costs it little. The trunk is the paper's in t2l and in names that end in -paper, else the
# gated one.
METHODS = {
    "frozen": {},
    "prompt": {"description_in_prompt": True},
    "lora": {"kind": "lora", "rank": 8},
    # a description and a question make a long row, so a step has fewer of them
    "lora-prompt": {"kind": "lora", "description_in_prompt": True, "descriptions_per_step": 8},
    "t2l": {"kind": "t2l", "rank": 8, "trunk": "paper", "lr": 5e-4},
    "t2l-gated": {"kind": "t2l", "rank": 8, "lr": 5e-4},
    "zhyper-diag": {"kind": "zhyper-diag"},
    "zhyper-diag-paper": {"kind": "zhyper-diag", "trunk": "paper", "lr": 5e-4},
    "zhyper-square": {"kind": "zhyper-square", "rank": 8, "lr": 1e-3},
    "zhyper-square-paper": {"kind": "zhyper-square", "rank": 8, "trunk": "paper", "lr": 5e-4},
}
PRESETS = {
    "default": {},
    # fewer cultures, which can be learned by heart, and more that is stated at once
    "hard": {"contexts": 64, "stated": 6},
    "votes": {"steps": 1600, "lr_scale": 0.5},
    # One layer and few tokens a step: what it learns in half a minute tells whether all works.
    # Most of that is pretraining, since only a backbone that can answer can be adapted.
    "smoke": {
        "layers": 1,
        "width": 64,
        "pretrain_steps": 300,
        "pretrain_lr": 1e-2,
        "lowest_layer": 0,
        "steps": 100,
        "lr_scale": 2.0,
        "evaluate": 64,
    },
    # the small backbone with a pretrained encoder, which understands words that training never had
    "words": {
        "encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "noise": 0.3,
        "narrow": 128,
        "steps": 1000,
    },
    "real": {
        "backbone": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "lowest_layer": 28,  # two of 30 layers: as good as six on the validation split of votes
        "steps": 2500,
        "lr_scale": 0.4,
        "descriptions_per_step": 16,
        "questions_per_description": 3,
        "evaluate": 256,
    },
}


def configure(method: str, preset: str, given: dict) -> Config:
    """The options of a method: a preset's, over them the method's own, over these the user's."""
    check_choice("method", method, METHODS)
    check_choice("preset", preset, PRESETS)
    changes = PRESETS[preset] | METHODS[method] | given
    if "lr" in given:
        changes["lr_scale"] = 1.0  # a rate that is given is meant as it is
    return Config(**changes)


# ---- the training loop, and the two trainings that use it


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """The share of the peak rate at step 1, 2 ...: a warm-up, then a cosine down to a tenth."""
    warmup = min(warmup, steps // 4)
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def parameter_groups(system: Zhyper, lr: float) -> list[dict]:
    """What is trained, with the peak rate of each.

    The A and B of all texts and the encoder learn three times as fast as trunk and heads. (LoRA+,
    arXiv 2402.12354, raises the rate of B. A small encoder is mostly word embeddings, of which a
    step meets few.)
    """
    fast = []
    slow = []
    for name, weight in system.named_parameters():
        if not weight.requires_grad:
            continue
        # (an A or a B that all texts share is called so: see hyper.Hypernetwork)
        if name.startswith(("hypernetwork.A.", "hypernetwork.B.", "encoder.")):
            fast.append(weight)
        else:
            slow.append(weight)
    groups = [{"params": slow, "peak": lr}, {"params": fast, "peak": 3 * lr}]
    return [group for group in groups if group["params"]]


def train_loop(
    path: Path,
    system: Zhyper,
    lr: float,
    steps: int,
    batches: Iterator[tuple],
    seed: int,
    checkpoint: dict | None,
) -> dict:
    """Train what requires a gradient, on the mean loss of each batch of (rows, descriptions).

    Every LOG_EVERY steps a line says how training goes, and the system is written to `path` with a
    checkpoint. Given one, training goes on from it, with the batches that would have come next.
    Raises ValueError if the loss is no number.
    """
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(system, lr), weight_decay=0.01, fused=True)
    report = {"steps": 0, "seconds": 0.0, "curve": []}  # [[step, mean loss since the last], ...]
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
        report = checkpoint["report"]
    done = report["steps"]
    # To go on exactly: the batches are seeded, so those that are done come first again, and are
    # skipped; and what else is random in a step, as dropout, is seeded by its number, below.
    batches = islice(batches, done, steps)
    losses = []
    start = time.perf_counter()
    bar = tqdm(batches, desc=path.stem, total=steps, initial=done)
    for step, (rows, descriptions) in enumerate(bar, start=done + 1):
        # 1. read a batch
        torch.manual_seed(seed + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps) * group["peak"]
        # 2. forward
        loss, _ = system(rows, descriptions)
        tokens = (rows.end - rows.start).sum()  # of all answers, each with its end token
        loss = loss.sum() / tokens
        # 3. backward
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        # 4. step
        optimizer.step()
        losses.append(loss.detach())  # fetched from a GPU only when it is needed
        # 5. log, and write a checkpoint
        if step % LOG_EVERY == 0 or step == steps:
            mean_loss = torch.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                problem = f"{path.stem}: the loss is {mean_loss} at step {step}"
                raise ValueError(f"{problem}: lower its rate")
            report["steps"] = step
            report["seconds"] += time.perf_counter() - start
            report["curve"].append([step, mean_loss])
            say(f"{path.stem}: step {step}, loss {mean_loss:.4f}, {report['seconds']:.0f} seconds")
            system.save(path, {"optimizer": optimizer.state_dict(), "report": report})
            losses = []
            start = time.perf_counter()
    return report


def pretrain(
    path: Path,
    system: Zhyper,
    documents: Sequence[str],
    config: Config,
    checkpoint: dict | None,
) -> dict:
    """Teach the backbone to write the documents, packed into full rows; then freeze it for good.

    It learns through `Zhyper.forward`, like all methods, but without descriptions and so without
    updates. Of a row of `data.batches.pack` every token but the first counts as its answer: start
    is 1, and end the row's length.
    """
    texts = encode(system.tokenizer, documents, "document", more_follows=True)
    eos = system.backbone.config.eos[0]
    packed = pack(texts, eos, PRETRAIN_ROWS, PRETRAIN_TOKENS, config.seed)
    batches = ((rows, None) for rows in packed)
    system.backbone.requires_grad_(True)
    lr = config.pretrain_lr
    steps = config.pretrain_steps
    report = train_loop(path, system.train(), lr, steps, batches, config.seed, checkpoint)
    system.requires_grad_(False).eval()
    return report


class Encoded(NamedTuple):
    """Records as token ids. Records with the same question and answer share a row, so that it is
    encoded once, and its hidden states below the adapted layers are computed once.

    Of three records, the first and the last of which ask and answer the same, there are two rows,
    and row_of is [0, 1, 0].
    """

    rows: Rows
    row_of: list[int]  # of each record, in their order
    descriptions: list[str] | None  # of each record, in their order

    def take(self, index: Sequence[int]) -> tuple[Rows, list[str] | None]:
        """The batch of the records at `index`: a row and a description for each."""
        rows = self.rows.take([self.row_of[i] for i in index])
        if self.descriptions is None:
            return rows, None
        return rows, [self.descriptions[i] for i in index]


def encode_records(
    system: Zhyper, records: Sequence[Record], descriptions: Sequence[str] | None
) -> Encoded:
    """The records as the system reads them, each under its description; None: under no text.

    Raises ValueError for the first text that is too long, empty or cannot be read.
    """
    if system.encoder and descriptions:
        # here only for the error that it may raise; training encodes again what a step reads
        parts = number_distinct(part for text in descriptions for part in system.parts_of(text))
        system.encode_parts(list(parts))
    prompts = system.prompts([record.question for record in records], descriptions)
    answers = [record.answer for record in records]
    pairs = list(zip(prompts, answers, strict=True))
    number_of = number_distinct(pairs)  # there is a row for each different pair
    row_prompts, row_answers = zip(*number_of, strict=True)
    rows = system.encode_rows(row_prompts, row_answers)
    return Encoded(rows, [number_of[pair] for pair in pairs], descriptions)


def fit(
    path: Path,
    system: Zhyper,
    data: Data,
    encoded: Encoded,
    config: Config,
    checkpoint: dict | None,
) -> dict:
    """Train hypernetwork and encoder, unless that is frozen, on the loss of answers."""
    encoded = encoded._replace(rows=system.with_hidden_states(encoded.rows))
    counts = config.descriptions_per_step, config.questions_per_description
    drawn = draw(data.split("train"), *counts, config.seed)
    # index: which of data.split("train") a step reads; `encoded` has them in the same order
    batches = (encoded.take(index) for index in drawn)
    lr = config.lr * config.lr_scale
    return train_loop(path, system.train(), lr, config.steps, batches, config.seed, checkpoint)


# ---- evaluation


@torch.no_grad()
def score_records(system: Zhyper, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Loss (nats) and exactness of each record's answer, (n,) each."""
    encoded = encoded._replace(rows=system.with_hidden_states(encoded.rows))
    losses = []
    exact = []
    indices = range(len(encoded.row_of))
    for start in range(0, len(indices), 64):
        loss, right = system(*encoded.take(indices[start : start + 64]))
        losses.append(loss.cpu())
        exact.append(right.cpu())
    return torch.cat(losses), torch.cat(exact)


def swapped_descriptions(records: Sequence[Record], rng: random.Random) -> list[str]:
    """For each record the description of another one, which has another answer.

    A record that is answered "bow" gets the description of one with the same question that is
    answered "sing". If all records with this question have one answer, it gets any description but
    its own. Raises ValueError if all descriptions are the same.
    """
    # {question: {answer: descriptions}}, as {"How do they greet?": {"bow": [...], "sing": [...]}}
    texts_of = defaultdict(lambda: defaultdict(list))
    for record in records:
        texts_of[record.question][record.answer].append(record.description)
    all_texts = list(dict.fromkeys(record.description for record in records))
    if len(all_texts) < 2:
        problem = f"all records of {records[0].split!r} have one description"
        raise ValueError(f"{problem}: add another to swap with")
    answers_of = {question: list(by_answer) for question, by_answer in texts_of.items()}
    swapped = []
    for record in records:
        answers = answers_of[record.question]
        if len(answers) > 1:
            answer = draw_other(rng, answers, record.answer)
            swapped.append(rng.choice(texts_of[record.question][answer]))
        else:
            swapped.append(draw_other(rng, all_texts, record.description))
    return swapped


def draw_other(rng: random.Random, items: Sequence[str], item: str) -> str:
    """One of several different items that is not `item`, each as likely."""
    drawn = item
    while drawn == item:
        drawn = rng.choice(items)
    return drawn


def random_text(rng: random.Random) -> str:
    """Six words of random letters: a description that says nothing."""
    words = [rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)) for _ in range(6)]
    return " ".join("".join(letters) for letters in words)


def evaluation_plan(data: Data, config: Config) -> dict[str, tuple[list[Record], list | None]]:
    """{split or control: its records, and a description for each}.

    The controls have the records of `unseen`, or of the first split if there is none. Raises
    ValueError if there is nothing to evaluate, or no description to swap with.
    """
    plan = {}
    for split in SPLITS:
        records = data.split(split)[: config.evaluate]
        if records and split != "train":
            plan[split] = (records, [record.description for record in records])
    if not plan:
        raise ValueError(f"{data.name} has no records to evaluate: give some another split")
    records, _ = plan[controlled_split(plan)]
    rng = random.Random(config.seed)
    plan["swapped"] = (records, swapped_descriptions(records, rng))
    plan["random"] = (records, [random_text(rng) for _ in records])
    plan["none"] = (records, None)
    return plan


def controlled_split(names: Iterable[str]) -> str:
    """The split whose records the controls ask again: `unseen`, or else the first of these."""
    return "unseen" if "unseen" in names else next(iter(names))


def evaluate(system: Zhyper, encoded: dict[str, Encoded]) -> dict:
    """The summary of every split and control."""
    exact = {}
    for name, records in encoded.items():
        if name != "train":
            _, exact[name] = score_records(system, records)
    return summary(exact)


def evaluate_guesses(guesses: dict[Record, str], data: Data, config: Config) -> dict:
    """The summary of guesses that train nothing, such as the majority's answer."""
    exact = {}
    for name, (records, _) in evaluation_plan(data, config).items():
        if name in SPLITS:
            exact[name] = torch.tensor([guesses[record] == record.answer for record in records])
    return summary(exact)


def summary(exact: dict[str, Tensor]) -> dict:
    """The accuracy of each split, which answers are right, as "0110", and the margin.

    The margin is what the swapped descriptions cost: the accuracy with the right ones less theirs.
    By the digits tests/evidence compares methods record by record.
    """
    accuracy = {name: right.float().mean().item() for name, right in exact.items()}
    if "swapped" in accuracy:
        accuracy["margin"] = accuracy[controlled_split(accuracy)] - accuracy["swapped"]
    digits = {name: "".join(map(str, right.int().tolist())) for name, right in exact.items()}
    return {"accuracy": accuracy, "exact": digits}


def table(rows: dict[str, dict]) -> str:
    """The rows of a run's results as Markdown, a column for each method."""
    lines = [["accuracy", *rows], ["---"] * (1 + len(rows))]
    for name in ("trainable", "encoder", "steps", "seconds"):
        lines.append([name] + [f"{row.get(name, 0):,.0f}" for row in rows.values()])
    first = next(iter(rows.values()))
    for name in first["accuracy"]:
        numbers = [row["accuracy"].get(name) for row in rows.values()]
        # the z in the format prints -0.000 as 0.000
        lines.append([name] + ["" if number is None else f"{number:z.3f}" for number in numbers])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- the main job


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def read_data(config: Config) -> Data:
    """The data set, made with those options that a data set may take."""
    names = ("data_path", "contexts", "stated", "wording")
    options = {name: getattr(config, name) for name in names}
    return load(config.data, config.seed, **options)


def build_base(data: Data, config: Config) -> Zhyper:
    """What all methods start from: a real model, or a tokenizer and a fresh backbone."""
    torch.manual_seed(config.seed)
    descriptions = dict.fromkeys(record.description for record in data.split("train"))
    if config.backbone:
        backbone = GPT.from_pretrained(config.backbone)
        tokenizer = read_tokenizer(config.backbone, backbone.config.vocab_size)
    else:
        tokenizer = train_tokenizer([*data.documents, *descriptions], config.vocab_size)
        sizes = ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            block_size=BLOCK_SIZE,
            layers=config.layers,
            heads=HEADS,
            kv_heads=HEADS,
            width=config.width,
            inner=11 * config.width // 4,  # about 8/3, as in Llama
        )
        backbone = GPT(sizes)
    words = sorted({word for text in descriptions for word in words_of(text)})
    return Zhyper(tokenizer, backbone, trained_words=words).to(config.device)


def build_system(base: Zhyper, config: Config) -> Zhyper:
    """A method's untrained system, on the tokenizer and the backbone of `base`."""
    torch.manual_seed(config.seed)
    options = {}
    if config.kind and HYPERNETWORKS[config.kind].reads_text:
        if config.encoder:
            encoder = Encoder.from_pretrained(config.encoder)
            tokenizer = read_tokenizer(config.encoder, encoder.config.vocab_size)
            options = {"encoder": encoder, "encoder_tokenizer": tokenizer, "encoder_frozen": True}
        else:
            sizes = EncoderConfig(
                vocab_size=base.tokenizer.get_vocab_size(),
                block_size=BLOCK_SIZE,
                layers=config.encoder_layers,
                heads=HEADS,
                width=config.width,
                inner=4 * config.width,
            )
            options = {"encoder": Encoder(sizes)}
    options["description_in_prompt"] = config.description_in_prompt
    options["trained_words"] = base.trained_words
    system = Zhyper(base.tokenizer, base.backbone, **options)
    if config.kind:
        sizes = HyperConfig(
            kind=config.kind,
            rank=config.rank,
            scale=config.scale,
            modules=tuple(config.modules.split(",")),
            lowest_layer=config.lowest_layer,
            trunk=config.trunk,
            features=config.features,
            narrow=config.narrow,
            reading=config.reading,
            noise=config.noise,
        )
        system.add_hypernetwork(sizes)
    return system.to(config.device)


def encode_data(system: Zhyper, data: Data, config: Config) -> dict[str, Encoded]:
    """Everything that a method will read: {"train" or a split or a control: its records}."""
    encoded = {}
    if system.hypernetwork:
        records = data.split("train")
        texts = [record.description for record in records]
        encoded["train"] = encode_records(system, records, texts)
    for name, (records, descriptions) in evaluation_plan(data, config).items():
        encoded[name] = encode_records(system, records, descriptions)
    return encoded


def run(folder: Path, methods: Sequence[str], preset: str, given: dict) -> dict:
    """Do the whole job in a new folder; returns what its results.json then holds.

    `given` are options in place of a method's and a preset's: {"steps": 3}. The folder gets
    backbone.pt, METHOD.pt for each method, and results.json. Raises ValueError if it exists.
    """
    if folder.exists():
        problem = f"{folder} exists"
        raise ValueError(f"{problem}: choose another --out, or go on there with --resume {folder}")
    return go_on(folder, {"methods": methods, "preset": preset, "given": given, "rows": {}})


def resume(folder: Path) -> dict:
    """Go on with a job that was stopped: it ends as if it had not been. Returns what `run` does.

    Raises FileNotFoundError if there is none, and ValueError for a damaged file.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): train again, to another --out") from None
    return go_on(folder, results)


def go_on(folder: Path, results: dict) -> dict:
    """Do what the results of a job do not hold yet.

    stopped in      found in the folder              goes on
    pretraining     backbone.pt with a checkpoint    from its step
    a training      METHOD.pt with a checkpoint      from its step
    an evaluation   the same, at its last step       with the evaluation
    between         a row in results.json            with the next method

    Systems that are built here share one backbone, which is pretrained below, before any of them is
    trained. One that comes out of METHOD.pt has a copy of that, as this file is not written before.
    """
    configs = {}
    for name in results["methods"]:
        configs[name] = configure(name, results["preset"], results["given"])
    # for data and base, which depend on no option that differs between methods
    config = configs[results["methods"][0]]
    data = read_data(config)

    # 1. everything is encoded before anything is trained: a text that is too long is known at once
    base_path = folder / "backbone.pt"
    base, base_checkpoint = read_checkpoint(base_path, config.device)
    if base is None:
        base = build_base(data, config)
    jobs = []  # what is left to do
    for name, method_config in configs.items():
        if name in results["rows"]:
            continue
        system, checkpoint = read_checkpoint(folder / f"{name}.pt", config.device)
        if system is None:
            system = build_system(base, method_config)
        encoded = encode_data(system, data, method_config)
        jobs.append((name, system, encoded, checkpoint))

    # 2. the backbone
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, results)
    if not base.backbone.pretrained_name and "pretrain" not in results:
        results["pretrain"] = pretrain(base_path, base, data.documents, config, base_checkpoint)
        write_results(folder, results)
        base.save(base_path)  # without a checkpoint, as it is finished

    # 3. each method, then what trains nothing
    for name, system, encoded, checkpoint in jobs:
        path = folder / f"{name}.pt"
        row = train_method(path, system, data, encoded, configs[name], checkpoint)
        results["rows"][name] = row
        write_results(folder, results)
        system.save(path)
    for name, guesses in data.guesses.items():
        results["rows"][name] = evaluate_guesses(guesses, data, config)
    write_results(folder, results)
    return results


def read_checkpoint(path: Path, device: str) -> tuple[Zhyper | None, dict | None]:
    """The system in a file, and the checkpoint of its training; None for both without a file."""
    if not path.exists():
        return None, None
    system, checkpoint = Zhyper.from_file(path)
    return system.to(device), checkpoint


def train_method(
    path: Path,
    system: Zhyper,
    data: Data,
    encoded: dict,
    config: Config,
    checkpoint: dict | None,
) -> dict:
    """Train and evaluate one method; returns its row of the results."""
    row = {}
    for name, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
        weights = network.parameters() if network else []
        row[name] = sum(weight.numel() for weight in weights if weight.requires_grad)
    if system.hypernetwork:
        row |= fit(path, system, data, encoded["train"], config, checkpoint)
    return row | evaluate(system.eval(), encoded)


def write_results(folder: Path, results: dict) -> None:
    write_file(folder / "results.json", json.dumps(results, indent=1).encode())


def parse_options() -> tuple[argparse.ArgumentParser, dict]:
    """The command line, and the options that were given: {"steps": 3}."""
    parser = argparse.ArgumentParser(usage="python train.py [options]", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS  # what is not given is not there
    parser.add_argument("--methods", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--preset", help=f"{', '.join(PRESETS)}, in place of the data set's own")
    parser.add_argument("--out", help="the folder to write; out/DATA-PRESET if left out")
    parser.add_argument("--resume", help="the folder of a run that goes on, with all its options")
    for setting in fields(Config):
        if "help" not in setting.metadata:
            continue  # METHODS decides it
        kind, *_ = get_args(setting.type) or [setting.type]  # int for int, and for int | None
        text = f"{setting.metadata['help']} (default: {setting.default})"
        parser.add_argument(f"--{setting.name.replace('_', '-')}", help=text, type=kind)
    return parser, vars(parser.parse_args())


def run_or_resume(given: dict) -> None:
    """The whole job, and its table."""
    start = time.time()
    data = given.get("data", "cultures")
    to_resume = given.pop("resume", None)  # a folder
    if to_resume and given:
        raise ValueError("--resume takes all options from the folder: give no other")
    # votes have a preset of their own
    preset = given.pop("preset", data if data in PRESETS else "default")
    methods = given.pop("methods", "frozen,prompt,zhyper-diag").split(",")
    folder = Path(to_resume or given.pop("out", f"out/{Path(data).stem}-{preset}"))
    try:
        results = resume(folder) if to_resume else run(folder, methods, preset, given)
    except KeyboardInterrupt:
        if not folder.exists():
            sys.exit("stopped")
        sys.exit(f"stopped: python train.py --resume {folder} goes on")
    print(table(results["rows"]))
    print(f"{time.time() - start:.0f} seconds")


def main() -> None:
    parser, given = parse_options()
    run_command(parser, lambda: run_or_resume(given))


if __name__ == "__main__":
    main()
