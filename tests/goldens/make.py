"""Makes the goldens: tiny random models and what the reference packages compute with them.

    python tests/goldens/make.py          (needs the reference extra)

Every parameter is drawn from a wide normal distribution, LayerNorm's and the biases too, so that a swapped,
transposed or forgotten one shows. Each .safetensors holds the weights under the checkpoint's names, ``ids`` and
``mask`` (texts, length) with ragged and non-leading masks, and ``hidden`` (texts, length, dim); the
config.json content is in its metadata. Those of families/ are sequence classifiers, with ``logits`` (texts, outputs).
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

HERE = Path(__file__).parent
SMALL = {"vocab_size": 40, "max_position_embeddings": 16}
DISTILBERTS = {
    "learned-gelu": {"dim": 16, "hidden_dim": 40, "n_heads": 4, "n_layers": 3},
    "sinusoidal-gelu": {"dim": 24, "hidden_dim": 32, "n_heads": 2, "n_layers": 1, "sinusoidal_pos_embds": True},
    "learned-relu": {"dim": 12, "hidden_dim": 20, "n_heads": 1, "n_layers": 2, "activation": "relu"},
}
BERT = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
# A family's fields beside those of every one; their names are BERT's unless they are said here
SHAPE = {"vocab_size": 40, "max_position_embeddings": 16, "num_labels": 3, "hidden_size": 16, "intermediate_size": 24,
         "num_attention_heads": 2, "num_hidden_layers": 2}  # fmt: skip
AFTER_PADDING = {"pad_token_id": 1, "max_position_embeddings": 18, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
FAMILIES = {
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 2},
    "bert": {"hidden_act": "gelu_new"},
    "roberta": AFTER_PADDING,
    "xlm-roberta": AFTER_PADDING,
    "camembert": {**AFTER_PADDING, "pad_token_id": 3, "max_position_embeddings": 20},
    "electra": {"embedding_size": 10},
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 18, "layer_norm_eps": 1e-5},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_buckets": 6,
        "max_relative_positions": -1,
    },
    "modernbert": {
        "num_hidden_layers": 3,
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "nomic_bert": {"pad_token_id": 0, "layer_norm_eps": 1e-5},
    "gte": {"pad_token_id": 0, "hidden_dropout_prob": 0.0, "layer_norm_eps": 1e-5},
}
# GTE's own form, which transformers' class computes where positions are scaled so
NEW = {"model_type": "new", "rope_theta": 1000.0, "rope_scaling": {"type": "ntk", "factor": 3.0},
       "position_embedding_type": "rope", "pack_qkv": True, "layer_norm_type": "layer_norm", "type_vocab_size": 0,
       "auto_map": {"AutoModel": "org/name--modeling.NewModel"},
       "architectures": ["NewForSequenceClassification"]}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 3.0 * 1000.0, "factor": 3.0 ** (2 / 8)}
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, SMALL["vocab_size"], (5, 11))
    mask = torch.ones(5, 11, dtype=torch.long)
    for row, length in enumerate((11, 7, 7, 3, 1)):
        mask[row, length:] = 0
    mask[0, 0] = mask[1, 2] = 0  # as in reference output A: what is masked need not be at the end
    return ids, mask


def randomize(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sinusoidal = "position_embeddings" in name and not parameter.requires_grad
            if not sinusoidal:
                parameter.normal_(mean=1.0 if re.search(r"(LayerNorm|norm\d?|_ln)\.weight", name) else 0.0, std=0.3)


def main() -> None:
    torch.manual_seed(0)
    for name, fields in DISTILBERTS.items():
        write(name, DistilBertModel(DistilBertConfig(**SMALL, **fields)))
    write("bert", BertModel(BertConfig(**SMALL, **BERT)))

    hidden = torch.randn(5, 11, 6)
    _, mask = batch()
    mask = (torch.arange(11) < mask.sum(dim=1)[:, None]).long()  # pooling is over leading tokens
    pooled = {}
    for mode in MODES:
        features = {"token_embeddings": hidden.clone(), "attention_mask": mask}
        pooled[mode] = Pooling(6, mode)(features)["sentence_embedding"].contiguous()
    save_file({"hidden": hidden, "mask": mask, **pooled}, HERE / "pooling.safetensors")

    for name, fields in FAMILIES.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **(SHAPE if "dim" not in fields else {**SMALL, "num_labels": 3}) | fields)
        write_classifier(name, AutoModelForSequenceClassification.from_config(config))
    torch.manual_seed(0)
    config = AutoConfig.for_model("gte", **SHAPE | FAMILIES["gte"], rope_parameters=LINEAR, type_vocab_size=0)
    write_classifier("new", AutoModelForSequenceClassification.from_config(config), NEW)


def write(name: str, model: torch.nn.Module) -> None:
    randomize(model)
    ids, mask = batch()
    with torch.no_grad():
        hidden = model.eval()(ids, attention_mask=mask).last_hidden_state
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors |= {"ids": ids, "mask": mask, "hidden": hidden}
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"config": json.dumps(model.config.to_dict())})


def write_classifier(name: str, model: torch.nn.Module, own: dict | None = None) -> None:
    """Without padding inside, of which each family thinks differently: a text is computed alone.

    ``own`` are fields of a config.json that transformers does not write.
    """
    randomize(model)
    _, mask = batch()
    lengths = (11, 7, 7, 3, 1)
    ids = torch.randint(5, SMALL["vocab_size"], mask.shape)
    hidden, logits = torch.zeros(*mask.shape, 16), []
    for row, length in enumerate(lengths):
        with torch.no_grad():
            found = model.eval()(ids[row : row + 1, :length], output_hidden_states=True)
        hidden[row, :length] = found.hidden_states[-1][0]
        logits.append(found.logits[0])
        mask[row] = torch.arange(11) < length
    with TemporaryDirectory() as folder:  # the names in files are not always those of the modules
        model.save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors")
        config = Path(folder, "config.json").read_text()
    if own:
        tensors = {re.sub(r"^gte\.", "new.", key): tensor for key, tensor in tensors.items()}
        config = json.dumps({k: v for k, v in json.loads(config).items() if k != "rope_parameters"} | own)
    tensors |= {"ids": ids, "mask": mask, "hidden": hidden, "logits": torch.stack(logits)}
    save_file(tensors, HERE / "families" / f"{name}.safetensors", metadata={"config": config})


if __name__ == "__main__":
    main()
