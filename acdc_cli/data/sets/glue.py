"""GLUE (arXiv 1804.07461) as it is published, without WNLI, and tables of your own in the same form."""

from __future__ import annotations

from acdc_cli.data.known_sentences import CachedForm, KnownSentences

_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
_REPOSITORIES = ("nyu-mll/glue", "glue")
_CACHED = CachedForm(_REPOSITORIES)

SENTENCES = {
    "sentences": KnownSentences(
        "your own tables train.tsv and dev.tsv with columns sentence, perhaps sentence2, and label",
        text=("sentence", "sentence2"),
        label="label",
        files={"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"},
    ),
    "rte": KnownSentences(
        "GLUE: whether one sentence entails another (RTE)",
        text=("sentence1", "sentence2"),
        label="label",
        classes=_ENTAILMENT,
        train_examples=2_490,
        cached=_CACHED,
    ),
    "qnli": KnownSentences(
        "GLUE: whether a sentence answers a question (QNLI)",
        text=("question", "sentence"),
        label="label",
        classes=_ENTAILMENT,
        train_examples=104_743,
        cached=_CACHED,
    ),
    "mrpc": KnownSentences(
        "GLUE: whether two sentences mean the same (MRPC)",
        text=("#1 String", "#2 String"),
        label="Quality",
        classes={"0": "not_equivalent", "1": "equivalent"},
        train_examples=3_668,
        cached=CachedForm(_REPOSITORIES, ("sentence1", "sentence2")),
    ),
    "sst2": KnownSentences(
        "GLUE: whether a review is positive (SST-2)",
        text=("sentence",),
        label="label",
        classes={"0": "negative", "1": "positive"},
        train_examples=67_349,
        cached=_CACHED,
    ),
    "cola": KnownSentences(
        "GLUE: whether a sentence is grammatical (CoLA)",
        text=(3,),
        label=1,
        classes={"0": "unacceptable", "1": "acceptable"},
        train_examples=8_551,
        cached=CachedForm(_REPOSITORIES, ("sentence",)),
    ),
    "stsb": KnownSentences(
        "GLUE: how similar two sentences are, from 0 to 5 (STS-B)",
        text=("sentence1", "sentence2"),
        label="score",
        scores=(0.0, 5.0),
        train_examples=5_749,
        cached=_CACHED,
    ),
    "mnli": KnownSentences(
        "GLUE: whether one sentence entails or contradicts another (MNLI)",
        text=("sentence1", "sentence2"),
        label="gold_label",
        classes={name: name for name in ("entailment", "neutral", "contradiction")},
        files={"train": "train.tsv", "val": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
        train_examples=392_702,
        cached=CachedForm(
            _REPOSITORIES,
            ("premise", "hypothesis"),
            {"val": "validation_matched", "mismatched": "validation_mismatched"},
        ),
    ),
    "qqp": KnownSentences(
        "GLUE: whether two questions ask the same (QQP)",
        text=("question1", "question2"),
        label="is_duplicate",
        classes={"0": "not_duplicate", "1": "duplicate"},
        train_examples=363_846,
        cached=_CACHED,
        has_broken_rows=True,
    ),
}
