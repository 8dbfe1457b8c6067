"""The files in which other libraries keep models: read from a folder or the hub, and written.

    config.json -> sizes        model.safetensors, or its shards -> parameters

Every parameter is filled exactly once, and every tensor is used or known to be of no use, so that
no weight stays random without a word; a setting that is not built in model.py is refused by name.
Whatever is missing, damaged or does not fit raises FileNotFoundError or ValueError, one line that
names the file or the tensor and what would mend it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from data._files import fingerprint
from data._tokenizer import from_json, read_tokenizer

BUILT = {  # what the config.json of a model.GPT and a model.Encoder must say
    "GPT": {
        "model_type": ("llama", "mistral"),
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "rope_type": (None, "default"),
        "sliding_window": (None,),
    },
    "Encoder": {"model_type": ("bert",), "hidden_act": ("gelu",)},
}
UNUSED = {  # tensors that may be left over
    "GPT": r"inv_freq$|^lm_head",  # a head that is filled is not left over
    "Encoder": r"^pooler\.|^cls\.|position_ids$",
}
FILES = "config.json, tokenizer.json and model.safetensors"
SIZES = {  # what a config.json calls otherwise than model.ModelConfig
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "hidden_size": "width",
    "intermediate_size": "inner",
    "rms_norm_eps": "eps",
    "layer_norm_eps": "eps",
    "rope_theta": "theta",
    "tie_word_embeddings": "tied",
    "eos_token_id": "eos",
}


def find(name: str) -> Path:
    """The folder of that name, else a copy of the hub's model of that name."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # comes with tokenizers

    wanted = ["config.json", "tokenizer*.json", "model*.safetensors", "model*.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # a connection that breaks off raises many kinds
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"no model {name}: it is no folder, and the hub does not give it ({reason}): "
            f"put {FILES} into a folder and give its name"
        ) from None


def read(kind: type, config: type, name: str):
    """A model.GPT or model.Encoder with the weights of that name, its `source` and `tokenizer`.

    `kind` is the one or the other, and `config` model.ModelConfig.
    """
    folder, what = find(name), kind.__name__
    network = kind(config(**read_sizes(folder, BUILT[what])))
    fill(network, folder, kind.HUB_NAMES, UNUSED[what])
    network.tokenizer = read_tokenizer(folder, network.config.vocab_size)
    network.tokenizer.encode_special_tokens = what == "Encoder"  # of a chat, its marks are read
    network.source = str(folder.resolve()) if Path(name).is_dir() else str(name)
    return network


def to_file(network, tokenizer=None) -> dict:
    """What a run folder keeps of a network: its weights, or where pretrained ones are."""
    if getattr(network, "source", None):
        return {"source": network.source, "hash": fingerprint(network)}
    tokenizer = tokenizer or getattr(network, "tokenizer", None)
    content = {"config": asdict(network.config), "weights": network.state_dict()}
    return content | {"tokenizer": tokenizer and tokenizer.to_str()}


def from_file(kind: Callable, config: type, saved: dict | None):
    """The network of which to_file made `saved`; None of None. `kind` makes one from a `config`.

    Raises FileNotFoundError, which read_file lets through, if pretrained weights are not there.
    """
    if not saved:
        return None
    if "source" not in saved:
        network = kind(config(**saved["config"]))
        network.load_state_dict(saved["weights"])
        network.tokenizer = saved["tokenizer"] and from_json(saved["tokenizer"])
        return network
    try:
        network = read(kind, config, saved["source"])
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    if fingerprint(network) != saved["hash"]:
        what = f"{saved['source']} holds other weights than those that this run was trained with"
        raise FileNotFoundError(f"{what}: put these back")
    return network.requires_grad_(False)


def read_sizes(folder: Path, fixed: Mapping[str, tuple]) -> dict:
    """What config.json says of a network's size, as arguments of model.ModelConfig.

    `fixed` has what is computed one way only, with the values for it: {"hidden_act": ("silu",)}.
    """
    path = folder / "config.json"
    config = read_json(path)
    rope = config.get("rope_parameters")  # where newer files keep rope_theta
    config |= rope if isinstance(rope, dict) else {}
    for key, values in fixed.items():
        if config.get(key) not in values:
            known = " or ".join(map(repr, values))
            raise ValueError(
                f"{path}: {key} is {config.get(key)!r}, and only {known} is built here"
            )
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    config.setdefault("tie_word_embeddings", False)
    if isinstance(config.get("eos_token_id"), list):
        config["eos_token_id"] = config["eos_token_id"][0]
    bert = config["model_type"] == "bert"
    absent = ("rms_norm_eps", "rope_theta", "eos_token_id") if bert else ("layer_norm_eps",)
    needed = {key: ours for key, ours in SIZES.items() if key not in absent}
    for key in needed:
        kind = int | float if key.endswith(("_eps", "_theta")) else int
        if not isinstance(config.get(key), kind):
            what = f"{path}: {key} is {config.get(key)!r}"
            raise ValueError(f"{what}: write the number that the model was trained with")
    return {ours: config[key] for key, ours in needed.items()}


def fill(network, folder: Path, names: Mapping[str, str], unused: str):
    """The network, its parameters filled from the folder's tensors.

    `names` are patterns that turn a parameter's name here into its tensor's, applied in order;
    tensors whose names match `unused` may be left over.
    """
    tensors = {name.removeprefix("bert."): tensor for name, tensor in read_tensors(folder).items()}
    token_types = tensors.pop("embeddings.token_type_embeddings.weight", None)
    for ours, parameter in network.named_parameters():
        theirs = hub_name(ours, names)
        if theirs not in tensors:
            raise ValueError(f"{folder}: the tensor {theirs} is missing: download the model again")
        tensor = tensors.pop(theirs)
        if tensor.shape != parameter.shape:
            have, want = tuple(tensor.shape), tuple(parameter.shape)
            raise ValueError(
                f"{folder}: the tensor {theirs} is {have}, and config.json says {want}"
            )
        parameter.data.copy_(tensor)  # bf16 is widened to float32
        if "position_embeddings" in theirs and token_types is not None:
            parameter.data += token_types[0]  # every token of a description has type 0
    left = [name for name in tensors if not re.search(unused, name)]
    if left:
        raise ValueError(f"{folder}: nothing here uses the tensor {left[0]} ({len(left)} such)")
    return network


def hub_name(name: str, names: Mapping[str, str]) -> str:
    """The name of a parameter in real weights.

    >>> hub_name("layers.0.q.weight", {"^": "model.", r"[.]q": ".self_attn.q_proj"})
    'model.layers.0.self_attn.q_proj.weight'
    """
    for pattern, theirs in names.items():
        name = re.sub(pattern, theirs, name)
    return name


def read_tensors(folder: Path) -> dict:
    """{name: tensor} of model.safetensors, or of the shards that its index names."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("to read real weights, pip install safetensors") from None
    index, tensors = folder / "model.safetensors.index.json", {}
    shards = ["model.safetensors"]
    if index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict):
            raise ValueError(f"{index} is damaged (no weight_map): download it again")
        shards = sorted(set(listed.values()))
    for path in (folder / shard for shard in shards):
        try:
            tensors |= load_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"no file {path}: put {FILES} there") from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): download it again") from None
    return tensors


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: put {FILES} there")
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): download it again") from None


# ---- writing


def check_new(folders: Sequence[str | None], force: bool) -> None:
    """Raise ValueError unless all those folders can be written, each of them another."""
    named = [Path(folder).resolve() for folder in folders if folder is not None]
    for folder in named:
        if named.count(folder) > 1:
            raise ValueError(f"{folder} cannot hold both: give each a folder of its own")
        if folder.exists() and not (force and folder.is_dir()):
            raise ValueError(f"{folder} exists: choose another folder, or --force to write into it")


def write_folder(to: str, weights: str, tensors: dict, files: Mapping) -> None:
    """Write tensors, {name: tensor}, into the file `weights`, and JSON, {file: text or dict}."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("to write for other libraries, pip install safetensors") from None
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / weights, metadata={"format": "pt"})
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def write_adapter(
    to: str, pairs: dict, names: Mapping[str, str], rank: int, alpha: float, base: str | None
) -> None:
    """A LoRA as peft keeps it, from {site: (A (r, d_in), B (d_out, r))}.

    Its tensors are named "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
    """
    tensors = {}
    for (layer, module), (A, B) in pairs.items():
        name = hub_name(f"layers.{layer}.{module}", names)
        tensors |= {f"{name}.lora_A": A, f"{name}.lora_B": B}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    config |= {"r": rank, "lora_alpha": alpha, "fan_in_fan_out": False}
    config["target_modules"] = sorted({name.split(".")[-2] for name in tensors})
    config["base_model_name_or_path"] = base
    config["layers_to_transform"] = sorted({layer for layer, _ in pairs})
    tensors = {f"base_model.model.{name}.weight": tensor for name, tensor in tensors.items()}
    write_folder(to, "adapter_model.safetensors", tensors, {"adapter_config.json": config})


def write_llama(to: str, gpt, tokenizer) -> None:
    """A model.GPT and its tokenizer as a Llama of transformers."""
    config = {theirs: getattr(gpt.config, ours) for theirs, ours in SIZES.items()}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {"pad_token_id": 0, "bos_token_id": None, "attention_bias": False, "mlp_bias": False}
    special = {"tokenizer_class": "PreTrainedTokenizerFast"}
    special |= {"pad_token": tokenizer.id_to_token(0)}
    special |= {"eos_token": tokenizer.id_to_token(gpt.config.eos)}
    files = {"config.json": config, "tokenizer_config.json": special}
    files["tokenizer.json"] = tokenizer.to_str()
    tensors = {hub_name(name, gpt.HUB_NAMES): w for name, w in gpt.state_dict().items()}
    write_folder(to, "model.safetensors", tensors, files)
