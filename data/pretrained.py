"""Hugging Face's files: a real Llama, Mistral or BERT in, an adapter for peft out.

    config.json -> sizes      *.safetensors -> weights      tokenizer.json -> tokenizer

A setting that model.py does not build is refused by name, because computing it wrongly would be
silent. `pip install safetensors` for the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from torch import Tensor

from data.tokenizer import tokenizer_from_json

# what ModelConfig and EncoderConfig of model.py have: what config.json calls it
LLAMA_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "eps": "rms_norm_eps",
    "theta": "rope_theta",
    "tied": "tie_word_embeddings",
}
BERT_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "eps": "layer_norm_eps",
}
# parts of the names of tensors: what model.py has in their place; replaced in this order
LLAMA_NAMES = {"model.": "", ".self_attn.": ".", ".mlp.": ".", "_proj.": "."}
BERT_NAMES = {
    "bert.": "",
    "embeddings.LayerNorm.": "norm.",
    "embeddings.word_embeddings.": "word.",
    "embeddings.position_embeddings.": "position.",
    "encoder.layer.": "blocks.",
    ".attention.self.": ".",
    ".attention.output.dense.": ".out.",
    ".attention.output.LayerNorm.": ".norm1.",
    ".intermediate.dense.": ".up.",
    ".output.dense.": ".down.",
    ".output.LayerNorm.": ".norm2.",
}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
# tensors that may be there and are not used
UNUSED_TENSORS = ("inv_freq", "position_ids", "pooler.", "cls.")
MEAN, FIRST = "mean", "cls"  # the poolings that are built


# ---- a model in


def find_folder(name: str) -> Path:
    """The folder of that name, else a local copy of the hub's model of that name."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # the package tokenizers brings it along

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"]))
    except Exception as error:  # a broken connection raises many kinds
        reason = str(error).strip().partition("\n")[0]
        hint = "give a folder with config.json, tokenizer.json and model.safetensors"
        raise FileNotFoundError(f"no folder or model {name} ({reason}): {hint}") from None


def read_json(path: Path, missing: object = None):
    """The content of a JSON file; of one that is not there, `missing` if that is given."""
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): download it again") from None


def refuse_others(folder: Path, settings: Mapping, built: Mapping[str, tuple]) -> None:
    """Raise ValueError for a setting whose value is not among those that are built."""
    for key, values in built.items():
        if settings.get(key) not in values:
            known = " or ".join(repr(value) for value in values)
            problem = f"{key} is {settings.get(key)!r}, and only {known} is built here"
            raise ValueError(f"{folder}: {problem}: choose another model")


def translate_sizes(folder: Path, settings: Mapping, names: Mapping[str, str]) -> dict:
    """The sizes under the names that model.py has for them."""
    missing = [theirs for theirs in names.values() if theirs not in settings]
    if missing:
        raise ValueError(f"{folder}: config.json has no {missing[0]}: download it again")
    return {ours: settings[theirs] for ours, theirs in names.items()}


def read_llama(name: str) -> tuple[dict, dict[str, Tensor]]:
    """The sizes and the weights of a Llama or a Mistral, as model.py names them.

    Raises FileNotFoundError or ValueError for what is missing, damaged or not built.
    """
    folder = find_folder(name)
    settings = read_json(folder / "config.json")
    settings |= settings.get("rope_parameters") or {}  # where newer files keep rope_theta
    settings.setdefault("num_key_value_heads", settings.get("num_attention_heads"))
    settings.setdefault("tie_word_embeddings", False)
    settings.setdefault("rope_theta", 10_000.0)
    sizes = translate_sizes(folder, settings, LLAMA_SIZES)
    built = {
        "model_type": ("llama", "mistral"),
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "rope_type": (None, "default"),
        "sliding_window": (None,),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "head_dim": (None, sizes["width"] // sizes["heads"]),
    }
    refuse_others(folder, settings, built)
    ends = []  # two files may name tokens that end a text, each one or several
    for found in (settings, read_json(folder / "generation_config.json", missing={})):
        end = found.get("eos_token_id")
        ends += end if isinstance(end, list) else [end]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    if not ends:
        problem = "config.json has no eos_token_id"
        raise ValueError(f"{folder}: {problem}: write the id of the token that ends a text")
    weights = read_weights(folder, LLAMA_NAMES)
    if sizes["tied"]:
        weights.pop("lm_head.weight", None)  # it would be the token embedding again
    return sizes | {"eos": tuple(ends)}, weights


def read_bert(name: str) -> tuple[dict, dict[str, Tensor]]:
    """The sizes and the weights of a BERT, and how sentence-transformers makes one embedding.

    Raises FileNotFoundError or ValueError for what is missing, damaged or not built.
    """
    folder = find_folder(name)
    settings = read_json(folder / "config.json")
    refuse_others(folder, settings, {"model_type": ("bert",), "hidden_act": ("gelu",)})
    sizes = translate_sizes(folder, settings, BERT_SIZES)
    sentence = read_json(folder / "sentence_bert_config.json", missing={})
    sizes["block_size"] = sentence.get("max_seq_length") or sizes["block_size"]
    pooling = MEAN
    for step in read_json(folder / "modules.json", missing=[]):  # what makes an embedding, in turn
        kind = step["type"].rpartition(".")[2]
        refuse_others(folder, {"module": kind}, {"module": ("Transformer", "Pooling", "Normalize")})
        if kind == "Pooling":
            pooling = read_pooling(folder / step["path"])
        if kind == "Normalize":
            sizes["normalize"] = True
    sizes["first_token"] = pooling == FIRST
    weights = read_weights(folder, BERT_NAMES)
    if "position.weight" in weights:
        # BERT may have more positions than sentence-transformers uses
        positions = weights["position.weight"][: sizes["block_size"]]  # (t, d)
        if TOKEN_TYPES in weights:
            positions = positions + weights.pop(TOKEN_TYPES)[0]  # every token here has type 0
        weights["position.weight"] = positions
    return sizes, weights


def read_pooling(folder: Path) -> str:
    """How the states of all tokens become one embedding: "mean" or "cls"."""
    settings = read_json(folder / "config.json")
    mode = settings.get("pooling_mode")  # newer files have a name, older ones a flag for each mode
    if mode is None:
        flags = [name for name, value in settings.items() if value is True]
        modes = [name for name in flags if name.startswith("pooling_mode_")]
        mode = " and ".join(modes)  # of two flags this becomes a name that is refused
        mode = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": FIRST}.get(mode, mode)
    refuse_others(folder, {"pooling": mode}, {"pooling": (MEAN, FIRST)})
    return mode


def read_weights(folder: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of a folder's files, in float32, under the names that model.py has."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("to read real weights, pip install safetensors") from None
    weights = {}
    files = sorted(folder.glob("model*.safetensors"))  # a large model comes in several
    if not files:
        raise FileNotFoundError(f"no model.safetensors in {folder}: download the model again")
    for file in files:
        try:
            tensors = load_file(file)
        except Exception as error:  # a damaged file raises many kinds
            raise ValueError(f"{file} is damaged ({error}): download it again") from None
        for name, tensor in tensors.items():
            if any(part in name for part in UNUSED_TENSORS):
                continue
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            weights[name] = tensor.float()
    return weights


def read_tokenizer(name: str, vocab_size: int) -> tokenizers.Tokenizer:
    """The tokenizer of a real model, set neither to cut texts nor to pad them.

    Raises FileNotFoundError, or ValueError for a damaged file or one of over `vocab_size` ids.
    """
    path = find_folder(name) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: a model is of no use without its tokenizer")
    try:
        tokenizer = tokenizer_from_json(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{path} is damaged ({error}): download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values()) + 1
    if size > vocab_size:
        raise ValueError(f"{path} has {size} ids, the model {vocab_size}: they do not go together")
    return tokenizer


# ---- an adapter out


def write_adapter(folder: Path, adapter: Mapping, base: str) -> None:
    """Write the adapter {(layer, module): LowRank} of one text for peft, as a LoRA of a Llama.

    `base` is the name under which peft finds the Llama. Raises ValueError for a folder that exists.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise ValueError("to write for peft, pip install safetensors") from None
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder")
    tensors = {}
    ranks = {}
    alphas = {}
    for (layer, module), update in adapter.items():
        A, B = update.as_lora()  # (r, d_in), (d_out, r)
        part = "mlp" if module in ("gate", "up", "down") else "self_attn"
        path = f"model.layers.{layer}.{part}.{module}_proj"
        tensors[f"base_model.model.{path}.lora_A.weight"] = A.cpu().contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = B.cpu().contiguous()
        ranks[path] = len(A)
        alpha = update.scale * len(A)  # peft divides it by the rank again
        alphas[path] = int(alpha) if alpha == int(alpha) else alpha
    rank = next(iter(ranks.values()))
    alpha = next(iter(alphas.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        # the sites that differ from these two
        "rank_pattern": {path: other for path, other in ranks.items() if other != rank},
        "alpha_pattern": {path: other for path, other in alphas.items() if other != alpha},
        "target_modules": sorted({f"{module}_proj" for _, module in adapter}),
        "layers_to_transform": sorted({layer for layer, _ in adapter}),
        "inference_mode": True,
    }
    weights = save(tensors, metadata={"format": "pt"})
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    text = json.dumps(settings, indent=1)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
