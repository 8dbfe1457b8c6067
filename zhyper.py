"""Zhyper, assembled: a description goes in, an adapted language model comes out.

description --tokenizer, Encoder--> c --hypernetwork--> {site: update} --> frozen GPT --> answer

python zhyper.py chat                                           # describe, then ask
python zhyper.py generate --description "..." --prompt "..."    # one question
python zhyper.py explain --description "..." --prompt "..."     # every stage on the way
python zhyper.py export --description "..." --to FOLDER         # the adapter, for peft
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import _pretrained as pretrained
from data._cli import Parser, one_line_errors
from data._files import fingerprint, read_file, write_file
from data._prompting import BARE, answer_lists, render
from data._rows import Row, by_length, length, pack, pad, sees
from data._tokenizer import encode
from hyper import HYPERNETWORKS, Adapter, HyperConfig
from model import GPT, Encoder, ModelConfig, sample

# one for each row: texts, where None is the frozen model, or embeddings c; or None for all rows
Descriptions = Sequence[str | None] | Tensor | None


class Zhyper(nn.Module):
    """A whole system, whatever the method: a tokenizer, a frozen GPT, and what adapts it to a text.

    `hypernetwork` is one of hyper.HYPERNETWORKS, with the `encoder` that it reads through; without
    one the model stays frozen. `template`, as "Q: {}", makes a prompt of a bare question, and
    `prompting` what the backbone reads: BARE the prompt alone, others in data/_prompting.py both.
    """

    def __init__(
        self, tokenizer, backbone, encoder=None, hypernetwork=None, prompting=BARE, template="{}"
    ):
        super().__init__()
        self.tokenizer: tokenizers.Tokenizer = tokenizer
        self.backbone: GPT = backbone.requires_grad_(False)
        self.encoder: Encoder | None = encoder
        self.hypernetwork: nn.Module | None = hypernetwork
        self.prompting, self.template = prompting, template
        self.in_prompt = "{description}" in prompting
        self.embeddings, self.states = {}, {}  # {text: c}, {row: states}: caches of frozen parts

    @classmethod
    def from_pretrained(cls, name: str) -> "Zhyper":
        """A real model and its tokenizer, from a folder or the hub; raises as GPT's does."""
        backbone = GPT.from_pretrained(name)
        return cls(backbone.tokenizer, backbone)

    @property
    def device(self) -> torch.device:
        return self.backbone.embed_tokens.weight.device

    # ---- from a text to an adapter

    def ids(self, texts: Sequence[str], what: str, longest: int | None = None) -> list[list[int]]:
        """Token ids of each text. Raises ValueError for an empty text, or one over `longest`."""
        own = self.encoder.tokenizer if self.encoder and what == "description" else None
        return encode(own or self.tokenizer, texts, what, longest)

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """The embedding c of each description, (b, d_text). Raises ValueError as `ids` does."""
        if self.encoder is None:
            raise ValueError("this system has no encoder: choose a method that reads descriptions")
        known = self.embeddings if self.encoder.source else {}  # a source: frozen, so c is kept
        new = [text for text in dict.fromkeys(descriptions) if text not in known]
        rows = self.ids(new, "description", self.encoder.config.block_size)

        def encode_some(some: list[int]) -> Tensor:
            ids, mask = pad([rows[i] for i in some])
            return self.encoder(ids.to(self.device), mask.to(self.device))

        if new:
            known |= zip(new, by_length([*map(len, rows)], 16, encode_some), strict=True)
        return torch.stack([known[text] for text in descriptions])

    def adapt(self, descriptions: Descriptions) -> Adapter:
        """The update of every site, row i for descriptions[i]; equal texts are encoded once.

        A description that is None gives the frozen model, exactly. Embeddings may stand in place
        of texts: adapt(torch.lerp(c1, c2, 0.3)) generates for a point between two of them.
        """
        if self.hypernetwork is None or descriptions is None:
            return {}
        with torch.autocast(self.device.type, enabled=False):  # bf16 would blur the texts
            if isinstance(descriptions, Tensor):
                return self.hypernetwork(descriptions)
            texts = [text for text in dict.fromkeys(descriptions) if text is not None]
            if not texts:
                return {}
            c = self.embed(texts) if self.hypernetwork.reads_text else None
            adapter = self.hypernetwork(c)
        number = {text: i for i, text in enumerate(texts)}
        index = torch.tensor([number.get(text, 0) for text in descriptions], device=self.device)
        adapter = {site: update.select(index) for site, update in adapter.items()}
        if None in descriptions:  # these rows borrowed the first text's update: B = 0 undoes it
            has = torch.tensor([[[text is not None]] for text in descriptions], device=self.device)
            adapter = {site: replace(u, B=u.B * has) for site, u in adapter.items()}
        return adapter

    # ---- from an adapter to answers

    def prompt_ids(self, prompts: Sequence[str], descriptions: Descriptions) -> list[list[int]]:
        """Token ids of each prompt, behind its description if that is where this system reads it.

        Raises ValueError unless there are prompts, and a description for each if there is one.
        """
        count = len(prompts) if descriptions is None else len(descriptions)
        if not len(prompts) or count != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {count} descriptions: give one for each")
        if descriptions is not None and not isinstance(descriptions, Tensor):
            self.ids([t for t in {*descriptions} if t is not None], "description")  # only a check
        if self.in_prompt and descriptions is not None:
            if isinstance(descriptions, Tensor):
                raise ValueError("this method reads descriptions in the prompt: give texts")
            pairs = zip(descriptions, prompts, strict=True)
            form = self.prompting, self.template
            prompts = [p if text is None else render(*form, text, p) for text, p in pairs]
        return self.ids(prompts, "prompt", self.backbone.config.block_size - 1)

    @torch.no_grad()
    def states_below(self, first: int, rows: Sequence[Row], ids, position, mask) -> Tensor:
        """The states (b, t, d) below the lowest adapted layer: nothing changes them, so kept."""
        keys = [str(row) for row in rows]
        if len(self.states) > 4096:  # a bound for the memory
            self.states.clear()
        new = [i for i, key in enumerate(keys) if key not in self.states]
        if new:
            x, mask = self.backbone.embed_tokens(ids[new]), None if mask is None else mask[new]
            with torch.autocast(self.device.type, enabled=False):
                x = self.backbone.through(x, {}, position[new], mask, layers=slice(first))
            for i, states in zip(new, x, strict=True):
                self.states[keys[i]] = states[: length(rows[i])].clone()
        return nn.utils.rnn.pad_sequence([self.states[key] for key in keys], batch_first=True)

    def score(self, prompts: Sequence[str], answers: Sequence, descriptions: Descriptions):
        """Of each answer: its summed loss (nats), its number of tokens, if it is exact; (n,) each.

        `answers` has one for each prompt, or a list of several, whose results follow each other.
        EOS is the last token of each. Exact: every token is the likeliest one. So greedy decoding
        would write just this answer and stop, but one pass shows it.
        """
        asked, eos = self.prompt_ids(prompts, descriptions), self.backbone.config.eos
        answers = answer_lists(answers, self.prompting, descriptions)
        told = iter(self.ids([*chain(*answers)], "answer"))
        rows = [(p, [next(told) for _ in a]) for p, a in zip(asked, answers, strict=True)]
        most, adapter = max(map(len, answers)), self.adapt(descriptions)
        first = min((layer for layer, _ in adapter), default=0)

        def score_some(some: list[int]) -> Tensor:
            part, index = [rows[i] for i in some], torch.tensor(some, device=self.device)
            packed = pack(part, eos, self.backbone.config.block_size)
            ids, position, segment, targets = (x.to(self.device) for x in packed)
            mask = sees(segment) if most > 1 else None  # None: all that came before
            updates = {site: update.select(index) for site, update in adapter.items()}
            below = (first, part, ids, position, mask)
            x = self.states_below(*below) if first else self.backbone.embed_tokens(ids)
            x = self.backbone.through(x, updates, position, mask, layers=slice(first, None))
            row, at, number, target = targets.unbind(1)  # (tokens,) each; number of answer, from 1
            logits = self.backbone.logits(self.backbone.norm(x[row, at])).float()
            loss = F.cross_entropy(logits, target, reduction="none")
            wrong = (logits.argmax(-1) != target).to(loss.dtype)
            found = torch.stack([loss, torch.ones_like(loss), wrong], dim=1)  # (n, 3)
            sums = found.new_zeros(len(some) * most, 3)
            return sums.index_add(0, row * most + number - 1, found).unflatten(0, (-1, most))

        sums = by_length([*map(length, rows)], 64, score_some).flatten(0, 1)  # (b · most, 3)
        loss, tokens, wrong = sums[sums[:, 1] > 0].unbind(1)  # no tokens: a row of fewer answers
        return loss, tokens, wrong == 0

    forward = score  # so that DistributedDataParallel can wrap a system

    @torch.inference_mode()
    def generate(
        self, prompts, descriptions=None, max_new_tokens=32, temperature=0.0, top_k=None, seed=0
    ) -> list[str]:
        """The answer to each prompt, every row under its own description.

        Greedy at temperature 0; else drawn, the same for the same seed. A row ends with EOS, or
        when it is full. Leaves the system in eval mode. Raises ValueError for what cannot be.
        """
        least = min(max_new_tokens, 1 if top_k is None else top_k)
        if least < 1 or not 0 <= temperature < float("inf"):
            what = f"max_new_tokens {max_new_tokens}, top_k {top_k}, temperature {temperature}"
            raise ValueError(f"{what}: the least are 1, 1 and 0, and none may be infinite")
        rows, config = self.prompt_ids(prompts, descriptions), self.backbone.config
        adapter, cache = self.eval().adapt(descriptions), {}
        ids, mask = (x.to(self.device) for x in pad(rows, left=True))
        lengths = mask.sum(1)  # (b,)
        padding = ids.shape[1] - lengths
        room = (config.block_size - lengths).clamp(max=max_new_tokens)
        generator = torch.Generator(self.device).manual_seed(seed)
        written, ended = [], torch.zeros_like(room, dtype=torch.bool)
        while not ended.all():
            features = self.backbone.features(ids, adapter, cache, padding)[:, -1]
            ids = sample(self.backbone.logits(features), temperature, top_k, generator)  # (b, 1)
            written.append(ids[:, 0].masked_fill(ended, config.eos))
            ended |= (ids[:, 0] == config.eos) | (len(written) >= room)
        ids = [[*row, config.eos] for row in torch.stack(written, dim=1).tolist()]  # an EOS in each
        return self.tokenizer.decode_batch([row[: row.index(config.eos)] for row in ids])

    # ---- one description's adapter, taken away

    @torch.no_grad()
    def adapter_of(self, description: str) -> Adapter:
        """One description's adapter. Raises ValueError for a method that makes none from a text."""
        if self.hypernetwork is None or self.in_prompt or not self.hypernetwork.reads_text:
            raise ValueError("this method generates no adapter from a text: choose one that does")
        return self.eval().adapt([description])

    def relative_norms(self, adapter: Adapter) -> dict[tuple[int, str], float]:
        """‖ΔW‖/‖W‖ of every site of one description's adapter: how far it moves the weights."""
        norms = {site: update.delta().norm() for site, update in adapter.items()}
        return {s: (n / self.backbone.linear(*s).weight.norm()).item() for s, n in norms.items()}

    def merge(self, description: str) -> GPT:
        """A plain GPT with the weights W + ΔW: as large and as fast as the frozen one."""
        merged = copy.deepcopy(self.backbone)
        merged.source = None  # its weights are others now
        for site, update in self.adapter_of(description).items():
            merged.linear(*site).weight.data += update.delta()[0]
        return merged

    def export(self, description: str, to: str, backbone: str | None = None, force: bool = False):
        """Write one description's adapter as a folder for peft, with A' = Z A and B' = B.

        And, given a second folder, the frozen model as a Llama of transformers. Raises ValueError
        without safetensors, or for a folder that exists, unless `force` is given.
        """
        pretrained.check_new((to, backbone), force)
        adapter, config = self.adapter_of(description), self.hypernetwork.config
        pairs = {site: (u.folded()[0], u.B.flatten(0, -2)) for site, u in adapter.items()}
        base = backbone or self.backbone.source
        pretrained.write_adapter(to, pairs, GPT.HUB_NAMES, config.rank, config.alpha, base)
        if backbone:
            pretrained.write_llama(backbone, self.backbone, self.tokenizer)

    # ---- files: backbone.pt, which all methods of a run share, and a METHOD.pt for each

    def save_backbone(self, run: Path) -> None:
        """Write the frozen model and its tokenizer; of a real one only its source and a hash."""
        write_file(run / "backbone.pt", pretrained.to_file(self.backbone, self.tokenizer))

    def save(self, run: Path, method: str) -> None:
        """Write what was trained; of the backbone and a frozen encoder a hash is enough."""
        content = {"of": [method, fingerprint(self.backbone)]}
        content |= {"prompting": self.prompting, "template": self.template}
        for name, network in (("encoder", self.encoder), ("hyper", self.hypernetwork)):
            content[name] = network and pretrained.to_file(network)
        write_file(run / f"{method}.pt", content)

    @classmethod
    def load_backbone(cls, run: str | Path) -> "Zhyper":
        """The frozen model of a run folder; raises as read_file does."""
        make = partial(pretrained.from_file, GPT, ModelConfig)
        backbone = read_file(Path(run) / "backbone.pt", make)
        return cls(backbone.tokenizer, backbone)

    @classmethod
    def load(cls, run: str | Path, method: str = "zhyper-diag", device="cpu") -> "Zhyper":
        """What a run folder has of a method; raises as read_file does."""
        base = cls.load_backbone(run)

        def make(saved: dict) -> Zhyper:
            encoder = pretrained.from_file(Encoder, ModelConfig, saved["encoder"])
            new = partial(base.new_hypernetwork, encoder=encoder)
            hypernetwork = pretrained.from_file(new, HyperConfig, saved["hyper"])
            rest = saved["prompting"], saved["template"]
            return cls(base.tokenizer, base.backbone, encoder, hypernetwork, *rest)

        of = [method, fingerprint(base.backbone)]  # what it belongs to: read_file refuses another
        return read_file(Path(run) / f"{method}.pt", make, of).to(device).eval()

    def new_hypernetwork(self, config: HyperConfig, encoder: Encoder | None) -> nn.Module:
        """A fresh one of that kind and size, between that encoder and this backbone."""
        sizes, d_text = self.backbone.config, encoder.config.width if encoder else 0
        layers = sizes.layers - config.first
        if not 0 < layers <= sizes.layers:
            raise ValueError(f"no layer {config.first} of {sizes.layers}: choose another --preset")
        return HYPERNETWORKS[config.kind](config, layers, sizes.shapes, d_text)


# ---- the command line: a function for each command, whose docstring is its help

USAGE = "/describe TEXT: answer as it says   /help: this   /quit: leave   anything else: a question"


def to_prompt(system: Zhyper, question: str) -> str:
    """A question in the words of the data set; one that holds "\\n" is a prompt as it stands."""
    return question.replace("\\n", "\n") if "\\n" in question else system.template.format(question)


def answers(system: Zhyper, args, question: str, description: str | None) -> str:
    prompts, two = [to_prompt(system, question)] * 2, [None, description]
    options = args.max_new_tokens, args.temperature, args.top_k, args.seed
    frozen, adapted = system.generate(prompts, two, *options)
    return f"frozen:  {frozen}\nadapted: {adapted}"


def generate(system: Zhyper, args) -> None:
    """one question: the frozen and the adapted answer"""
    print(answers(system, args, args.prompt, args.description))


def chat(system: Zhyper, args) -> None:
    """describe somebody, then ask; the frozen and the adapted answer side by side"""
    print(USAGE)
    description = None
    while True:
        try:
            line = input("> ").strip()
            command, _, text = line.partition(" ")
            if command == "/quit":
                return
            if command == "/describe":
                system.prompt_ids(["?"], [text])  # only a check, before the old one is given up
                norms = system.relative_norms(system.adapt([text])).values()
                print(f"‖ΔW‖/‖W‖ at {len(norms)} sites, at most {max(norms, default=0):.3f}")
                description = text
            elif not line or command.startswith("/"):
                print(USAGE)
            else:
                print(answers(system, args, line, description))
        except (EOFError, KeyboardInterrupt):
            return print()
        except ValueError as error:
            print("error:", error)


def export(system: Zhyper, args) -> None:
    """write the adapter of one description as a folder for the peft library"""
    system.export(args.description, args.to, args.backbone, args.force)
    print(f"written to {args.to}" + (f" and {args.backbone}" if args.backbone else ""))


@torch.no_grad()
def explain(system: Zhyper, args) -> None:
    """every stage between a description and an answer, with its shape and its size"""

    def stage(name: str, numbers: Sequence[Tensor], why: str) -> None:
        shape = f"{len(numbers)} × " if len(numbers) > 1 else ""
        shape += str(tuple(numbers[0].shape))
        print(f"{name:9}{shape:17}{sum(n.numel() for n in numbers):>7,}  {why}")

    def pieces(ids: Sequence[int], tokenizer=system.tokenizer) -> str:
        return "|".join(tokenizer.decode([i], skip_special_tokens=False) for i in ids)

    prompt = torch.tensor(system.prompt_ids([to_prompt(system, args.prompt)], None))
    adapter, c = system.adapter_of(args.description), system.embed([args.description])
    ids = system.ids([args.description], "description")
    text = pieces(ids[0], system.encoder.tokenizer or system.tokenizer)
    stage("tokens", [torch.tensor(ids)], f"the description in pieces: {text}")
    stage("c", [c], "the encoder's mean over them: what the text says")
    stage("feature", [system.hypernetwork.trunk(c)], "the trunk's: c as every site sees it")
    (layer, module), first = next(iter(adapter.items()))
    for name in ("A", "B") if first.z is None else ("z",):
        some = " ".join(f"{x:.2f}" for x in getattr(first, name).flatten()[:4].tolist())
        why = f"the heads', for every site: {some} ... in layer {layer} {module}"
        stage(name, [getattr(update, name) for update in adapter.values()], why)
    print("‖ΔW‖/‖W‖ of every site: how far the adapter moves the weights")
    norms = system.relative_norms(adapter)
    for layer in dict.fromkeys(layer for layer, _ in norms):
        row = [f"{m} {norm:.3f}" for (l, m), norm in norms.items() if l == layer]
        print(f"  layer {layer:<4}{'   '.join(row)}")
    print("the likeliest first tokens of the answer")
    for name, updates in (("frozen", {}), ("adapted", adapter)):
        p, best = system.backbone(prompt, updates)[0, -1].softmax(-1).topk(5)
        pairs = zip(best.tolist(), p.tolist(), strict=True)
        print(f"  {name:10}{'   '.join(f'{pieces([i])!r} {x:.3f}' for i, x in pairs)}")


def main() -> None:
    parser = Parser(prog="zhyper.py", description="Use what python train.py has trained.")
    commands = parser.add_subparsers(required=True, parser_class=Parser)
    for function in (chat, generate, explain, export):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--run", default="out/cultures", help="the run folder: %(default)s")
        command.add_argument("--method", default="zhyper-diag", help="of its methods: %(default)s")
        if function is not chat:
            command.add_argument("--description", required=True, help="the text to adapt to")
        if function in (generate, explain):
            command.add_argument("--prompt", required=True, help="a question; with \\n, a prompt")
        if function in (chat, generate):
            command.add_argument("--max-new-tokens", type=int, default=32)
            command.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest")
            command.add_argument("--top-k", type=int, help="draw from so many; left out: from all")
            command.add_argument("--seed", type=int, default=0)
        if function is export:
            command.add_argument("--to", required=True, help="the folder to write")
            command.add_argument("--backbone", help="one more, for the frozen model (transformers)")
            command.add_argument("--force", action="store_true", help="write into existing folders")
    args = parser.parse_args()
    args.function(Zhyper.load(args.run, args.method), args)


if __name__ == "__main__":
    one_line_errors(main)
