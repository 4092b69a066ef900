"""What an older transformers and sentence-transformers make of folders: run by the Python of .venv-older.

python older.py TEXTS.json FOLDER...      prints, for each folder, its vectors and its classifier's logits (or null)
"""

import json
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer


def answers(folder: str, texts: list[str]) -> dict:
    vectors = SentenceTransformer(folder, device="cpu").encode(texts, batch_size=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        first = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[:, 0]
        architecture = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
        logits = None
        if architecture.endswith("ForSequenceClassification"):
            logits = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits.tolist()
    return {"vectors": vectors.tolist(), "first": first.tolist(), "logits": logits}


if __name__ == "__main__":
    found = [answers(folder, json.loads(Path(sys.argv[1]).read_text())) for folder in sys.argv[2:]]
    print(json.dumps(found))
