"""Makes the sentencepiece models of spm/, and the ids that transformers gives hard texts with nothing but them.

    python tests/goldens/make_spm.py      (needs transformers, sentencepiece and protobuf)

Their maps of characters are of a few rules, so that the files are small.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
from transformers import AutoTokenizer

HERE = Path(__file__).parent / "spm"
CORPUS = (
    *Path(__file__).read_text(encoding="utf-8").splitlines(),
    *["élève à côté ﬁn Ａ１ naïve 東京 こんにちは Ελλάδα привет мир", "don't stop! (really?) e.g. 3.14, 1,000 a_b"] * 5,
)
RULES = "FB01\t66 69\nFF21\t41\nFF11\t31\n3000\t20\n9\t20\nA0\t20\nBD\t31 2044 32\n"
BERTS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
         "eos_piece": "[SEP]", "unk_piece": "[UNK]", "control_symbols": ["[CTRL]"]}  # fmt: skip
MODELS = {
    "fairseq": {"normalization_rule_tsv": "rules", "user_defined_symbols": ["<foo>", "xyz"]},
    "berts": {"normalization_rule_tsv": "rules", "user_defined_symbols": ["<foo>", "xyz"], **BERTS},
    "bpe": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "bytes": {"byte_fallback": True, "vocab_size": 420, "normalization_rule_name": "identity"},
}
KINDS = {
    "xlm-roberta": ("fairseq", "sentencepiece.bpe.model", {"add_prefix_space": False}),
    "camembert": ("fairseq", "sentencepiece.bpe.model", {"add_prefix_space": False}),
    "deberta-v2": ("berts", "spm.model", {"do_lower_case": True, "split_by_punct": True}),
}
TEXTS = [
    "", " ", "a", "Hello world", "  two  blanks ", "a\tb\nc", "ﬁn Ａ１ ½", "élève à côté", "e\u0301le\u0300ve",
    "don't stop! (really?)", "x <mask> y", "x [MASK] y", "x</s>y", "[CLS] a [SEP] [CTRL]", "<foo> xyz fooxyz",
    "東京 こんにちは", "🎉 zero\u200bwidth", "nb\u00a0sp", "▁ under", "a▁b", "1,000 3.14", "UPPER Case", "\r\n end ",
    "ends\n", "\u3000wide", "<s>a</s>", "<unk>", "[UNK] x", "x<pad>y",
]  # fmt: skip


def train(name: str, folder: str, **fields: object) -> None:
    text, rules = Path(folder, "text"), Path(folder, "rules")
    text.write_text("\n".join(CORPUS), encoding="utf-8")
    rules.write_text(RULES, encoding="utf-8")
    fields |= {"normalization_rule_tsv": str(rules)} if fields.get("normalization_rule_tsv") else {}
    shape = {"model_type": "unigram", "vocab_size": 150, "character_coverage": 0.98, **fields}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(HERE / name), **shape)
    (HERE / f"{name}.vocab").unlink()


def main() -> None:
    expected = []
    with TemporaryDirectory() as folder:
        for name, fields in MODELS.items():
            train(name, folder, **fields)
        for kind, (name, file, more) in KINDS.items():
            for options in ({}, more):
                place = Path(folder, f"{kind} {len(options)}")
                place.mkdir()
                (place / file).write_bytes((HERE / f"{name}.model").read_bytes())
                (place / "config.json").write_text(json.dumps({"model_type": kind}))
                (place / "tokenizer_config.json").write_text(json.dumps(options))
                tokenizer = AutoTokenizer.from_pretrained(place)
                case = {"family": kind, "model": name, "file": file, "options": options}
                expected.append({**case, "ids": [tokenizer(text)["input_ids"] for text in TEXTS]})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in expected)
    content = f'{{"texts": {json.dumps(TEXTS, ensure_ascii=False)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "expected.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
