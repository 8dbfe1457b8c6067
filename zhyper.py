"""Zhyper, assembled: a description goes in, an adapted language model comes out.

description --tokenizer, Encoder--> c --hypernetwork--> {site: ΔW} --> frozen GPT --> answer

python zhyper.py chat                                           # describe, then ask
python zhyper.py generate --description "..." --prompt "..."    # one question
python zhyper.py explain --description "..." --prompt "..."     # every stage on the way
python zhyper.py export --description "..." --to FOLDER         # the adapter, for peft
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import _pretrained as pretrained
from data._cli import Parser, one_line_errors
from data._files import fingerprint, read_file, write_file
from data._tokenizer import from_json, read_tokenizer
from hyper import HYPERNETWORKS, Adapter, HyperConfig
from model import GPT, Encoder, ModelConfig, pad, sample

# one for each row: texts, where None is the frozen model, or embeddings c; or None for all rows
Descriptions = Sequence[str | None] | Tensor | None


def by_length(rows: Sequence[Sequence], size: int, call: Callable[[list[int]], Tensor]) -> Tensor:
    """Call `call` with the indices of `size` rows at a time; return what it makes of all, in order.

    Rows of like length go together, so little is spent on padding, and few, to fit a CPU's cache.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [call(order[at : at + size]) for at in range(0, len(order), size)]
    original = torch.tensor(order, device=parts[0].device).argsort()  # the inverse permutation
    return torch.cat(parts)[original]


class Zhyper(nn.Module):
    """A whole system, whatever the method: a tokenizer, a frozen GPT, and what adapts it to a text.

    `hypernetwork` is one of hyper.HYPERNETWORKS, with the `encoder` that it reads through; without
    one the model stays frozen. With `in_prompt` the description also stands before the prompt, as
    in the methods `prompt` and `lora-prompt`. `template` turns a bare question into a prompt.
    """

    def __init__(
        self, tokenizer, backbone, encoder=None, hypernetwork=None, in_prompt=False, template="{}"
    ):
        super().__init__()
        self.tokenizer: tokenizers.Tokenizer = tokenizer
        self.backbone: GPT = backbone.requires_grad_(False)
        self.encoder: Encoder | None = encoder
        self.hypernetwork: nn.Module | None = hypernetwork
        self.in_prompt, self.template = in_prompt, template

    @classmethod
    def from_pretrained(cls, name: str) -> "Zhyper":
        """A real model and its tokenizer, from a folder or the hub; raises as GPT's does."""
        folder = pretrained.find(name)
        backbone = GPT.from_pretrained(str(folder))
        return cls(read_tokenizer(folder, backbone.config.vocab_size), backbone)

    @property
    def device(self) -> torch.device:
        return self.backbone.embed_tokens.weight.device

    # ---- from a text to an adapter

    def ids(self, texts: Sequence[str], what: str, longest: int | None = None) -> list[list[int]]:
        """Token ids of each text. Raises ValueError for an empty text, or one over `longest`."""
        try:  # an answer gets no BOS: it goes on
            rows = self.tokenizer.encode_batch([*texts], add_special_tokens=what != "answer")
        except TypeError:
            raise ValueError(f"the {what} holds bytes that are not text: remove them") from None
        rows = [row.ids for row in rows]
        for text, row in zip(texts, rows, strict=True):
            if not text.strip():
                raise ValueError(f"the {what} is empty: write at least a word")
            if longest is not None and len(row) > longest:
                length = f"{len(row)} tokens long, of at most {longest}"
                raise ValueError(f"the {what} {text[:40]!r} … is {length}: shorten it")
        return rows

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """The embedding c of each description, (b, d_text). Raises ValueError as `ids` does."""
        if self.encoder is None:
            raise ValueError("this system has no encoder: choose a method that reads descriptions")
        rows = self.ids(descriptions, "description", self.encoder.config.block_size)

        def encode(some: list[int]) -> Tensor:
            ids, mask = pad([rows[i] for i in some])
            return self.encoder(ids.to(self.device), mask.to(self.device))

        return by_length(rows, 16, encode)

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
            prompts = [prompt if text is None else f"{text}\n{prompt}" for text, prompt in pairs]
        return self.ids(prompts, "prompt", self.backbone.config.block_size - 1)

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], descriptions: Descriptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How well each answer fits: loss summed over its tokens (nats), tokens, exact; each (b,).

        EOS is its last token. It is exact if greedy generation would write it and stop: one pass
        tells, because generation would read the same tokens.
        """
        asked, eos = self.prompt_ids(prompts, descriptions), self.backbone.config.eos
        pairs = zip(asked, self.ids(answers, "answer"), strict=True)
        rows, adapter = [[*a, *b, eos] for a, b in pairs], self.adapt(descriptions)

        def score_some(some: list[int]) -> Tensor:
            ids, mask = (x.to(self.device) for x in pad([rows[i] for i in some]))  # (b, t)
            index = torch.tensor(some, device=self.device)
            start = torch.tensor([len(asked[i]) for i in some], device=self.device)
            in_answer = mask & (torch.arange(ids.shape[1], device=self.device) >= start[:, None])
            updates = {site: update.select(index) for site, update in adapter.items()}
            features = self.backbone.features(ids[:, :-1], updates)  # causal: padding comes after
            features = features[in_answer[:, 1:]]  # (all answers' tokens, d): what predicts each
            logits, target = self.backbone.logits(features).float(), ids[in_answer]
            loss = F.cross_entropy(logits, target, reduction="none")
            wrong = (logits.argmax(-1) != target).to(loss.dtype)
            row = in_answer.nonzero()[:, 0]  # whose answer each token is part of
            sums = [loss.new_zeros(len(some)).index_add(0, row, x) for x in (loss, wrong)]
            return torch.stack([*sums, in_answer.sum(1)], dim=1)  # (b, 3)

        loss, wrong, tokens = by_length(rows, 64, score_some).unbind(1)
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
        length = mask.sum(1)  # (b,)
        padding = ids.shape[1] - length
        room = (config.block_size - length).clamp(max=max_new_tokens)
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
        for site, update in self.adapter_of(description).items():
            merged.linear(*site).weight.data += update.delta()[0]
        return merged

    def export(self, description: str, to: str, backbone: str | None = None, force: bool = False):
        """Write one description's adapter as a folder for peft, with A' = Z A and B' = B.

        And, given a second folder, the frozen model as a Llama of transformers. Raises ValueError
        without safetensors, or for a folder that exists, unless `force` is given.
        """
        pretrained.check_new((to, backbone), force)
        tensors = {}
        for (layer, module), update in self.adapter_of(description).items():
            name = pretrained.hub_name(f"layers.{layer}.{module}", GPT.HUB_NAMES)
            tensors[f"{name}.lora_A"] = update.folded()[0]  # (r, d_in)
            tensors[f"{name}.lora_B"] = update.B.flatten(0, -2)  # (d_out, r), a leading 1 dropped
        config = self.hypernetwork.config
        pretrained.write_adapter(to, tensors, config.rank, config.alpha, backbone)
        if backbone:
            pretrained.write_llama(backbone, self.backbone, self.tokenizer)

    # ---- files: backbone.pt, which all methods of a run share, and a METHOD.pt for each

    def save_backbone(self, run: Path) -> None:
        """Write the frozen model and its tokenizer."""
        content = {"config": asdict(self.backbone.config), "weights": self.backbone.state_dict()}
        write_file(run / "backbone.pt", content | {"tokenizer": self.tokenizer.to_str()})

    def save(self, run: Path, method: str) -> None:
        """Write all but the frozen model, of which a hash is enough to know it again."""
        own = {name: w for name, w in self.state_dict().items() if not name.startswith("backbone.")}
        content = {"of": [method, fingerprint(self.backbone)], "weights": own}
        content |= {"in_prompt": self.in_prompt, "template": self.template}
        for name, network in (("encoder", self.encoder), ("hyper", self.hypernetwork)):
            content[name] = None if network is None else asdict(network.config)
        write_file(run / f"{method}.pt", content)

    @classmethod
    def load_backbone(cls, run: str | Path) -> "Zhyper":
        """The frozen model of a run folder; raises as read_file does."""

        def make(saved: dict) -> Zhyper:
            system = cls(from_json(saved["tokenizer"]), GPT(ModelConfig(**saved["config"])))
            system.backbone.load_state_dict(saved["weights"])
            return system

        return read_file(Path(run) / "backbone.pt", make)  # names the file if anything fails

    @classmethod
    def load(cls, run: str | Path, method: str = "zhyper-diag", device="cpu") -> "Zhyper":
        """What a run folder has of a method; raises as read_file does."""
        base = cls.load_backbone(run)

        def make(saved: dict) -> Zhyper:
            encoder = Encoder(ModelConfig(**saved["encoder"])) if saved["encoder"] else None
            hyper = HyperConfig(**saved["hyper"]) if saved["hyper"] else None
            hypernetwork = base.new_hypernetwork(hyper, encoder) if hyper else None
            rest = saved["in_prompt"], saved["template"]
            system = cls(base.tokenizer, base.backbone, encoder, hypernetwork, *rest)
            system.load_state_dict(base.state_dict() | saved["weights"])
            return system

        of = [method, fingerprint(base.backbone)]  # what it belongs to: read_file refuses another
        return read_file(Path(run) / f"{method}.pt", make, of).to(device).eval()

    def new_hypernetwork(self, config: HyperConfig, encoder: Encoder | None) -> nn.Module:
        """A fresh one of that kind and size, between that encoder and this backbone."""
        sizes, d_text = self.backbone.config, encoder.config.width if encoder else 0
        return HYPERNETWORKS[config.kind](config, sizes.layers, sizes.shapes, d_text)


# ---- the command line: a function for each command, whose docstring is its help

USAGE = "/describe TEXT: answer as it says   /help: this   /quit: leave   anything else: a question"


def to_prompt(system: Zhyper, question: str) -> str:
    """A question in the words of the data set; one that holds "\\n" is a prompt as it stands."""
    return question.replace("\\n", "\n") if "\\n" in question else system.template.format(question)


def answers(system: Zhyper, args, question: str, description: str | None) -> str:
    prompt, two = [to_prompt(system, question)] * 2, [None, description]
    options = args.max_new_tokens, args.temperature, args.top_k, args.seed
    frozen, adapted = system.generate(prompt, two, *options)
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

    def pieces(ids: Sequence[int]) -> str:
        return "|".join(system.tokenizer.decode([i]) for i in ids)

    prompt = torch.tensor(system.prompt_ids([to_prompt(system, args.prompt)], None))
    adapter, c = system.adapter_of(args.description), system.embed([args.description])
    ids = system.ids([args.description], "description")
    stage("tokens", [torch.tensor(ids)], f"the description in pieces: {pieces(ids[0])}")
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
