"""Zhyper, assembled: a description goes in, an adapted language model comes out.

    description --Encoder--> c --hypernetwork--> {site: update} --frozen GPT--> answer

python zhyper.py chat                                           # describe, then ask
python zhyper.py generate --description "..." --prompt "..."    # one question
python zhyper.py explain --description "..." --prompt "..."     # every stage on the way
python zhyper.py export --description "..." --to FOLDER         # the adapter, for peft
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from data.batches import NO_TARGET, Rows, join_pairs, pad
from data.tokenizer import (
    decode_answer,
    encode,
    encode_pairs,
    encode_without_end,
    tokenizer_from_json,
)
from hyper import HYPERNETWORKS, Adapter, HyperConfig, Hypernetwork
from model import (
    GPT,
    LLAMA_SIZES,
    Cache,
    Encoder,
    EncoderConfig,
    ModelConfig,
    llama_names,
    sample,
)

# one for each prompt: texts, where None asks for the frozen model, or embeddings c (b, d_text);
# or None alone: the frozen model for every prompt
Descriptions = Sequence[str | None] | Tensor | None
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)  # cuda, mps or None
DEVICES = [ACCELERATOR.type, "cpu"] if ACCELERATOR else ["cpu"]
TRAINED = "assets/cultures-default"  # a trained run that comes with the code


@dataclass(frozen=True)
class Guide:
    """What somebody who talks to a system has to know of its data. It changes no computation."""

    template: str = "{}"  # makes a prompt of a bare question, as "Q: {}\nA:" does
    questions: tuple[str, ...] = ()  # bare questions that it was trained to answer
    description: str = ""  # an example

    def prompt(self, question: str) -> str:
        """The template with the question in it; a text with a line break is a prompt already.

        A question that is typed with its "Q: " does not get a second one.
        """
        question = question.replace("\\n", "\n")  # a shell passes a line break on as \n
        if "\n" in question:
            return question
        before = self.template.partition("{}")[0]
        question = question.removeprefix(before)
        if not question.strip():
            raise ValueError("the question is empty: write at least a word")
        return self.template.replace("{}", question)

    def question(self, prompt: str) -> str:
        """The bare question of a prompt."""
        before, _, after = self.template.partition("{}")
        return prompt.removeprefix(before).removesuffix(after)


class Zhyper(nn.Module):
    """A whole system, of whatever method: a frozen GPT, and what adapts it to a text.

    The hypernetwork is one of hyper.HYPERNETWORKS, not only Zhyper's own, and the `encoder` makes
    the embeddings that it reads. Without a hypernetwork the GPT stays as it is.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        backbone: GPT,
        encoder: Encoder | None = None,
        hypernetwork: Hypernetwork | None = None,
        encoder_tokenizer: Tokenizer | None = None,  # None: the backbone's
        encoder_frozen: bool = False,  # True: each text is embedded once, and its c is kept
        description_in_prompt: bool = False,  # True: the backbone reads it before the prompt
        guide: Guide = Guide(),
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.backbone = backbone.requires_grad_(False)
        self.encoder = encoder
        self.hypernetwork = hypernetwork
        self.encoder_tokenizer = encoder_tokenizer or tokenizer
        self.encoder_frozen = encoder_frozen
        self.description_in_prompt = description_in_prompt
        self.guide = guide
        self.embeddings: dict[str, Tensor] = {}  # {text: c (d_text,)} of a frozen encoder

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
        layers = sizes.layers - config.lowest_layer
        if not 0 < layers <= sizes.layers:
            raise ValueError(f"no layer {config.lowest_layer} in {sizes.layers}: --lowest-layer")
        d_text = self.encoder.config.width if self.encoder else 0
        kind = HYPERNETWORKS[config.kind]
        self.hypernetwork = kind(config, layers, sizes.shapes, d_text).to(self.device)

    # ---- from a text to an adapter

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """The embedding c of each description, (b, d_text).

        Raises ValueError for a text that is empty, too long or not known to the tokenizer.
        """
        if not self.encoder_frozen:
            return self.run_encoder(descriptions)
        new = [text for text in dict.fromkeys(descriptions) if text not in self.embeddings]
        if new:
            self.embeddings.update(zip(new, self.run_encoder(new), strict=True))
        here = self.encoder.word.weight  # the system may have moved to another device
        return torch.stack([self.embeddings[text].to(here) for text in descriptions])

    def run_encoder(self, texts: Sequence[str]) -> Tensor:
        """c of each text, (n, d_text), through the encoder."""
        rows = encode(self.encoder_tokenizer, texts, "description", self.encoder.config.block_size)
        ids = torch.from_numpy(pad(rows)).to(self.device)  # (n, t)
        mask = torch.from_numpy(pad([[1] * len(row) for row in rows]))  # 1 at tokens, 0 at padding
        return self.encoder(ids, mask.bool().to(self.device))

    def adapt(self, descriptions: Descriptions) -> Adapter:
        """The update of every site; where it differs between texts, row i is for descriptions[i].

        A description that is None gives the frozen model, exactly. Embeddings may stand in place
        of texts: adapt(torch.lerp(c1, c2, 0.3)) generates for a point between two of them.
        """
        if self.hypernetwork is None or descriptions is None:
            return {}
        if isinstance(descriptions, Tensor):
            return self.in_backbone_dtype(self.hypernetwork(descriptions))
        texts = list(dict.fromkeys(text for text in descriptions if text is not None))
        if not texts:
            return {}
        # Each text is encoded, and its update generated, once. Then every prompt looks up its own.
        c = self.embed(texts) if self.hypernetwork.reads_text else None
        adapter = self.hypernetwork(c)
        place = {text: i for i, text in enumerate(texts)}
        # A prompt without a description borrows the first text's update, and gets B = 0, so that
        # ΔW is zero. (z = 0 would do as well, but some methods have no z.)
        index = torch.tensor([place.get(text, 0) for text in descriptions], device=self.device)
        adapter = {site: update.take(index) for site, update in adapter.items()}
        if None in descriptions:
            described = [float(text is not None) for text in descriptions]
            described = torch.tensor(described, device=self.device)[:, None, None]  # (b, 1, 1)
            adapter = {site: replace(u, B=u.B * described) for site, u in adapter.items()}
        return self.in_backbone_dtype(adapter)

    def in_backbone_dtype(self, adapter: Adapter) -> Adapter:
        """The adapter in bf16 where the frozen model is; what is trained stays in fp32."""
        dtype = self.backbone.embed_tokens.weight.dtype
        return {site: update.to(dtype) for site, update in adapter.items()}

    # ---- from an adapter to a loss

    def full_prompts(self, prompts: Sequence[str], descriptions: Descriptions) -> Sequence[str]:
        """What the backbone reads for each prompt: the prompt alone, or after its description.

        Raises ValueError unless there are prompts, and one description for each of them.
        """
        count = len(prompts) if descriptions is None else len(descriptions)
        if not len(prompts) or count != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {count} descriptions: give one for each")
        if descriptions is None or not self.description_in_prompt:
            return prompts
        if isinstance(descriptions, Tensor):
            raise ValueError("this method reads descriptions in the prompt: give texts")
        pairs = zip(prompts, descriptions, strict=True)
        return [prompt if text is None else f"{text}\n{prompt}" for prompt, text in pairs]

    def encode_rows(
        self, prompts: Sequence[str], answers: Sequence[str], descriptions: Descriptions
    ) -> Rows:
        """What the backbone reads and predicts: each prompt with its answer, and EOS at the end.

        Raises ValueError for a text that is too long, and where one token would span the border of
        a prompt and its answer.
        """
        config = self.backbone.config
        texts = self.full_prompts(prompts, descriptions)
        pairs = encode_pairs(self.tokenizer, texts, answers, config.block_size)
        return join_pairs(pairs, config.eos[0])

    def states_below(self, rows: Rows) -> Tensor:
        """The states (b, t, d) that the lowest adapted layer reads."""
        if rows.states is not None:
            return rows.states
        x = self.backbone.embed_tokens(torch.from_numpy(rows.ids).to(self.device))
        if self.lowest_layer:
            x = self.backbone.run_layers(x, {}, end=self.lowest_layer)
        return x

    @torch.no_grad()
    def with_states(self, rows: Rows) -> Rows:
        """The rows with their states below the lowest adapted layer, for training to look up.

        No description changes them. They are left out where they would take too much memory, and
        where the lowest adapted layer is the first, below which there is only a look-up.
        """
        most = 2**28  # numbers: a GiB
        if not self.lowest_layer or rows.ids.size * self.backbone.config.width > most:
            return rows
        parts = []
        for start in range(0, len(rows.ids), 64):
            part = slice(start, start + 64)
            parts.append(self.states_below(Rows(rows.ids[part], rows.targets[part])))
        return rows._replace(states=torch.cat(parts))

    def forward(self, rows: Rows, descriptions: Descriptions) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors (b,), with a number for each row.

        They are the summed loss of its targets (nats), how many targets it has, and if it is exact.
        rows.targets[i, j] is the id that follows rows.ids[i, j], or NO_TARGET. A row is exact if
        each target is the likeliest token. Greedy decoding would then write exactly this answer;
        one pass is enough to know.
        """
        adapter = self.adapt(descriptions)
        x = self.states_below(rows)
        # Of the last layer only the states that predict a target are computed. Each row of `places`
        # has these first; a row with fewer targets is filled up with places that predict none.
        predicted = rows.targets != NO_TARGET  # (b, t)
        most = predicted.sum(axis=1).max()
        places = np.argsort(~predicted, axis=1, kind="stable")[:, :most]  # (b, k)
        targets = np.take_along_axis(rows.targets, places, axis=1)
        wanted = torch.from_numpy(places).to(self.device)
        # Rows are filled up on the right. No token looks ahead, so that needs no mask.
        x = self.backbone.run_layers(x, adapter, start=self.lowest_layer, wanted=wanted)
        return self.row_losses(x, targets)

    def row_losses(self, x: Tensor, targets: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` returns, from states above the last layer (b, k, d) and targets (b, k)."""
        # Logits are vocab_size numbers each: they are made for the n targets and nowhere else.
        row, column = np.nonzero(targets != NO_TARGET)  # (n,) each
        target = torch.from_numpy(targets[row, column]).to(self.device)
        row = torch.from_numpy(row).to(self.device)
        column = torch.from_numpy(column).to(self.device)
        logits = self.backbone.logits(x[row, column]).float()  # (n, vocab_size)
        loss = F.cross_entropy(logits, target, reduction="none")  # (n,)
        wrong = (logits.argmax(-1) != target).float()
        zero = loss.new_zeros(len(x))  # (b,), to which the n losses are added, each to its row
        row_loss = zero.index_add(0, row, loss)
        row_tokens = zero.index_add(0, row, torch.ones_like(loss))
        exact = zero.index_add(0, row, wrong) == 0
        return row_loss, row_tokens, exact

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], descriptions: Descriptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, number of tokens and exactness of each answer, (b,) each, as `forward` has them."""
        return self(self.encode_rows(prompts, answers, descriptions), descriptions)

    # ---- from an adapter to an answer

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        descriptions: Descriptions = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """The answer to each prompt, every row under its own description.

        Greedy at temperature 0, otherwise drawn, the same for the same seed. A row ends with an end
        token, after max_new_tokens, or when it is full. Leaves the system in eval mode. Raises
        ValueError for texts that are too long.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
        config = self.backbone.config
        texts = self.full_prompts(prompts, descriptions)
        longest = config.block_size - 1  # so that there is room for a token of the answer
        rows = encode_without_end(self.tokenizer, texts, "prompt", longest)
        adapter = self.eval().adapt(descriptions)
        ids = torch.from_numpy(pad(rows, left=True)).to(self.device)  # (b, t)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        most = (config.block_size - lengths).clamp(max=max_new_tokens)  # (b,), new tokens
        ends = torch.tensor(config.eos, device=self.device)
        cache = Cache(padding=ids.shape[1] - lengths)
        generator = torch.Generator(self.device).manual_seed(seed)
        written = []
        ended = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        while not ended.all():
            x = self.backbone.run_layers(self.backbone.embed_tokens(ids), adapter, cache=cache)
            ids = sample(self.backbone.logits(x[:, -1]), temperature, generator)  # (b, 1)
            written.append(ids.masked_fill(ended[:, None], config.eos[0]))
            ended |= torch.isin(ids[:, 0], ends) | (len(written) >= most)

        answers = []
        for row, tokens in zip(rows, torch.cat(written, dim=1).tolist(), strict=True):
            answer = []
            for token in tokens:
                if token in config.eos:
                    break
                answer.append(token)
            answers.append(decode_answer(self.tokenizer, row, answer))
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

    def export(
        self, description: str, to: str, backbone_to: str | None = None, base: str | None = None
    ) -> None:
        """Write one description's adapter into the folder `to`, for peft, with A' = Z A and B' = B.

        The frozen model is written into the folder `backbone_to`, as a Llama for transformers. A
        real model need not be written: peft finds it under its own name, or under the name `base`.
        Raises ValueError without safetensors, for a self-made model with neither a folder nor a
        name, and for a folder that exists.
        """
        if backbone_to:
            base = base or str(Path(backbone_to).resolve())
        base = base or self.backbone.pretrained_name
        if not base:
            problem = "peft would not find the frozen model"
            raise ValueError(f"{problem}: --backbone-to FOLDER writes it, or --base names it")
        for folder in (to, backbone_to):
            if folder is not None and Path(folder).exists():
                raise ValueError(f"{folder!r} exists: choose another folder")
        if backbone_to and Path(to).resolve() == Path(backbone_to).resolve():
            raise ValueError(f"both would be written into {to!r}: name two folders")
        adapter = self.adapter_of(description)
        if backbone_to:
            self.export_backbone(backbone_to)
        names = llama_names(self.backbone)
        tensors = {}
        for (layer, module), update in adapter.items():
            path = names[f"layers.{layer}.{module}.weight"].removesuffix(".weight")
            A, B = update.as_lora()
            tensors[f"base_model.model.{path}.lora_A.weight"] = A
            tensors[f"base_model.model.{path}.lora_B.weight"] = B
        config = self.hypernetwork.config
        alpha = config.scale * config.rank  # peft divides it by the rank again
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "target_modules": [f"{module}_proj" for module in config.modules],
            "layers_to_transform": list(range(config.lowest_layer, self.backbone.config.layers)),
            "inference_mode": True,
        }
        write_folder(to, {"adapter_config.json": settings}, "adapter_model.safetensors", tensors)

    def export_backbone(self, folder: str) -> None:
        """Write the frozen model and its tokenizer as a Llama for transformers."""
        config = self.backbone.config
        settings = {theirs: getattr(config, ours) for ours, theirs in LLAMA_SIZES.items()}
        settings |= {
            "model_type": "llama",
            "eos_token_id": config.eos[0],
            "pad_token_id": 0,
            "bos_token_id": None,
        }
        special = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.tokenizer.id_to_token(config.eos[0]),
            "pad_token": self.tokenizer.id_to_token(0),
        }
        files = {
            "config.json": settings,
            "tokenizer_config.json": special,
            "tokenizer.json": json.loads(self.tokenizer.to_str()),
        }
        weights = self.backbone.state_dict()
        tensors = {theirs: weights[ours] for ours, theirs in llama_names(self.backbone).items()}
        write_folder(folder, files, "model.safetensors", tensors)

    # ---- files

    def save(self, path: Path) -> None:
        """Write the whole system into one file; of real models that are frozen only the name.

        The file is written beside an older one and then renamed, so a stop leaves that one whole.
        """
        content = {
            "tokenizer": self.tokenizer.to_str(),
            "encoder_tokenizer": self.encoder_tokenizer.to_str(),
            "encoder_frozen": self.encoder_frozen,
            "description_in_prompt": self.description_in_prompt,
            "guide": asdict(self.guide),
            "dtype": str(self.backbone.embed_tokens.weight.dtype).removeprefix("torch."),
        }
        for part in ("backbone", "encoder", "hypernetwork"):
            network = getattr(self, part)
            if network is None:
                continue
            frozen = part == "backbone" or self.encoder_frozen
            name = getattr(network, "pretrained_name", None)
            if name and frozen:
                content[part] = {"pretrained_name": name}
            else:
                content[part] = {"config": asdict(network.config), "weights": network.state_dict()}
        write_torch(path, content)

    @classmethod
    def load(
        cls, run: str | Path, method: str = "zhyper-diag", device: str | torch.device = "cpu"
    ) -> "Zhyper":
        """A method of a run folder.

        Raises FileNotFoundError, or ValueError for a file that is damaged or of other code.
        """
        saved = read_torch(Path(run) / f"{method}.pt")
        if "backbone" not in saved:
            raise ValueError(f"{method}.pt of {run} holds no method: choose another")
        try:
            system = cls.from_saved(saved)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            problem = f"{method}.pt of {run} does not fit this code ({error!r:.80})"
            raise ValueError(f"{problem}: train it again") from None
        return system.to(device).requires_grad_(False).eval()

    @classmethod
    def from_saved(cls, saved: dict) -> "Zhyper":
        """The system of which `save` wrote this content."""
        dtype = getattr(torch, saved["dtype"])

        def build(part: str, kind: type, config: type, *options):  # options of from_pretrained
            found = saved.get(part)
            if found is None:
                return None
            if "pretrained_name" in found:
                return kind.from_pretrained(found["pretrained_name"], *options)
            network = kind(config(**found["config"]))
            network.load_state_dict(found["weights"])
            return network

        system = cls(
            tokenizer=tokenizer_from_json(saved["tokenizer"]),
            backbone=build("backbone", GPT, ModelConfig, dtype).to(dtype),
            encoder=build("encoder", Encoder, EncoderConfig),
            encoder_tokenizer=tokenizer_from_json(saved["encoder_tokenizer"]),
            encoder_frozen=saved["encoder_frozen"],
            description_in_prompt=saved["description_in_prompt"],
            guide=Guide(**saved["guide"]),
        )
        if "hypernetwork" in saved:
            system.add_hypernetwork(HyperConfig(**saved["hypernetwork"]["config"]))
            system.hypernetwork.load_state_dict(saved["hypernetwork"]["weights"])
        return system


def write_torch(path: Path, content: dict) -> None:
    """Write a .pt file beside the old one, then rename it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def read_torch(path: Path) -> dict:
    """What write_torch wrote; no code in it is run. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name another run or method, or train this one")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises many kinds
        raise ValueError(f"{path} is damaged ({error!r:.80}): delete it, train again") from None


def write_folder(folder: str, files: dict[str, dict], weights: str, tensors: dict) -> None:
    """Write JSON files, {name: content}, and tensors, {name: tensor}, into the file `weights`."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("to write for other libraries, pip install safetensors") from None
    Path(folder).mkdir(parents=True)
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, Path(folder) / weights, metadata={"format": "pt"})
    for name, content in files.items():
        (Path(folder) / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


# ---- the command line: a function for each command, whose docstring is its help

USAGE = """/describe TEXT  answer as it says; before that, both answers are the frozen model's
/facets         the questions that it was trained to answer
/quit           leave
anything else   a question"""
SURE = 0.8  # a less probable answer is a guess


def how_sure(system: Zhyper, prompt: str, answer: str, description: str | None) -> str:
    """How probable the model finds an answer with its end, in words."""
    try:
        loss, _, _ = system.score([prompt], [answer], [description])
    except ValueError:  # an answer that is empty, or that the tokenizer joins with the prompt
        return "nobody can say how probable"
    probability = math.exp(-loss.item())
    guess = "" if probability >= SURE else ": a guess"
    return f"{probability:.2f}{guess}"


def command_generate(system: Zhyper, args) -> None:
    """one question: the frozen and the adapted answer, and how probable each is"""
    prompt = system.guide.prompt(args.prompt)
    descriptions = {"frozen": None, "adapted": args.description}
    answers = system.generate([prompt] * 2, list(descriptions.values()))
    for (name, description), answer in zip(descriptions.items(), answers, strict=True):
        print(f"{name + ':':9}{answer}   ({how_sure(system, prompt, answer, description)})")


def command_chat(system: Zhyper, args) -> None:
    """describe somebody, then ask; the frozen and the adapted answer side by side"""
    print(f"{args.run}, {args.method}. Describe somebody, then ask, for example:\n")
    print("  /describe", system.guide.description)
    for question in system.guide.questions[:3]:
        print(" ", question)
    print(f"\n{USAGE}")
    args.description = None
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
                args.description = text
                print(f"‖ΔW‖/‖W‖ at {len(norms)} sites, at most {max(norms, default=0):.3f}")
            elif command == "/facets":
                print("\n".join(system.guide.questions))
            elif not line or command.startswith("/"):
                print(USAGE)
            else:
                args.prompt = line
                command_generate(system, args)
        except ValueError as error:  # the user's to mend; the conversation goes on
            print("error:", error)


def command_export(system: Zhyper, args) -> None:
    """write the adapter of one description as a folder for the peft library"""
    system.export(args.description, args.to, args.backbone_to, args.base)
    print(f"written to {args.to}")


@torch.no_grad()
def command_explain(system: Zhyper, args) -> None:
    """every stage between a description and an answer, with its shape and its size"""
    adapter = system.adapter_of(args.description)
    ids = encode(system.encoder_tokenizer, [args.description], "description")[0]
    c = system.embed([args.description])
    features = system.hypernetwork.trunk(c)
    norms = system.relative_norms(adapter)
    print("tokens   ", len(ids), "|".join(system.encoder_tokenizer.decode([i]) for i in ids))
    print("c        ", tuple(c.shape), "the encoder's embedding: what the text says")
    print("features ", tuple(features.shape), "the trunk's: what each layer and module sees of c")
    for (layer, module), update in adapter.items():
        generated = update.B if update.z is None else update.z
        start = " ".join(f"{number:6.2f}" for number in generated.flatten()[:6].tolist())
        norm = norms[layer, module]
        print(f"layer {layer} {module:5}{tuple(generated.shape)} {start} ...  ‖ΔW‖/‖W‖ {norm:.3f}")
    print("the likeliest first tokens of the answer:")
    longest = system.backbone.config.block_size
    prompt = encode_without_end(
        system.tokenizer, [system.guide.prompt(args.prompt)], "prompt", longest
    )
    prompt = torch.tensor(prompt, device=system.device)
    for name, updates in (("frozen", {}), ("adapted", adapter)):
        logits = system.backbone(prompt, updates)[0, -1].float()
        probability, token = logits.softmax(-1).topk(5)
        cells = []
        for p, i in zip(probability.tolist(), token.tolist(), strict=True):
            cells.append(f"{system.tokenizer.decode([i])!r} {p:.3f}")
        print(f"  {name:9}{'   '.join(cells)}")


def main() -> None:
    sys.stdout.reconfigure(errors="replace")  # Windows may not be able to write a Δ into a file
    parser = argparse.ArgumentParser(description="Use what python train.py has trained.")
    commands = parser.add_subparsers(required=True)
    for function in (command_chat, command_generate, command_explain, command_export):
        name = function.__name__.removeprefix("command_")
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--run", default=TRAINED, help="the run folder")
        command.add_argument("--method", default="zhyper-diag", help="one of its methods")
        command.add_argument("--device", default="cpu", choices=DEVICES)
        if function is not command_chat:
            command.add_argument("--description", required=True, help="the text to adapt to")
        if function in (command_generate, command_explain):
            command.add_argument("--prompt", required=True, help="a question, or a whole prompt")
        if function is command_export:
            command.add_argument("--to", required=True, help="the folder to write")
            command.add_argument("--backbone-to", help="the folder for the frozen model, if wanted")
            command.add_argument("--base", help="the name by which peft will find that model")
    args = parser.parse_args()
    try:
        args.function(Zhyper.load(args.run, args.method, args.device), args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
