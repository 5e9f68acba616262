"""A little set of sentences in two classes, with a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

COLOURS, TOOLS = ("red", "green", "blue", "white"), ("saw", "hammer", "nail", "drill")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, "the", "is", "a", *COLOURS, *TOOLS)
TINY = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, vocab_size: 15}"
"""A BERT for `WORDS`."""


def write_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def rows(count: int) -> list[str]:
    """Every other sentence names a colour, the others a tool; they have different lengths."""
    kinds = ("colour", COLOURS), ("tool", TOOLS)
    return [
        f"{'the ' * (number % 5)}{words[number // 2 % 4]} is a\t{label}"
        for number in range(count)
        for label, words in [kinds[number % 2]]
    ]


def write_set(folder: Path, train: int = 48, val: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", val)):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows(count), ""]))
    return folder


def write_recipe(folder: Path) -> Path:
    """AC/DC in four epochs on the set `words` of this folder."""
    write_tokenizer(folder / "tokens")
    write_set(folder / "words", train=96)
    file = folder / "words.yaml"
    file.write_text(
        f"""name: words
epochs: 4
threads: 1
model: {{name: "hf:bert", options: {TINY}}}
data: {{name: sentences, path: {folder / "words"}, tokenizer: {folder / "tokens"}, length: 16, batch_size: 8}}
task: {{name: sentence_class}}
optim: {{name: adamw, lr: 0.005, schedule: {{name: linear}}}}
sparsity: {{method: acdc, target: 0.5, keep_dense: [embeddings, last], warmup_epochs: 1, sparse_epochs: 1,
            dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
"""
    )
    return file
