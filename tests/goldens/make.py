"""Makes the goldens: tiny random models and what the reference packages compute with them.

    python tests/goldens/make.py          (needs the reference extra)

Every parameter is drawn from a wide normal distribution, LayerNorm's and the biases too, so that a swapped,
transposed or forgotten one shows. Each .safetensors holds the weights under the checkpoint's names, ``ids`` and
``mask`` (texts, length) with ragged and non-leading masks, and ``hidden`` (texts, length, dim); the
config.json content is in its metadata.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

HERE = Path(__file__).parent
SMALL = {"vocab_size": 40, "max_position_embeddings": 16}
DISTILBERTS = {
    "learned-gelu": {"dim": 16, "hidden_dim": 40, "n_heads": 4, "n_layers": 3},
    "sinusoidal-gelu": {"dim": 24, "hidden_dim": 32, "n_heads": 2, "n_layers": 1, "sinusoidal_pos_embds": True},
    "learned-relu": {"dim": 12, "hidden_dim": 20, "n_heads": 1, "n_layers": 2, "activation": "relu"},
}
BERT = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
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
                parameter.normal_(mean=1.0 if "LayerNorm.weight" in name or "norm.weight" in name else 0.0, std=0.3)


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


def write(name: str, model: torch.nn.Module) -> None:
    randomize(model)
    ids, mask = batch()
    with torch.no_grad():
        hidden = model.eval()(ids, attention_mask=mask).last_hidden_state
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors |= {"ids": ids, "mask": mask, "hidden": hidden}
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"config": json.dumps(model.config.to_dict())})


if __name__ == "__main__":
    main()
