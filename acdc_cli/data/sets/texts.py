"""Running texts: WikiText-103, and any folder of text files."""

from acdc_cli.data.known_texts import KnownText

TEXTS = {
    "wikitext103": KnownText(
        description="Wikipedia articles, 103 million words; --source: the folder of its .tokens files",
        vocabulary=267_735,
        train_tokens=103_227_021,
        files=("wiki.{}.tokens", "{}.txt"),
    ),
    "text": KnownText(
        description="any folder with train.txt and valid.txt, and perhaps test.txt; --tokenizer words or bpe:SIZE",
    ),
}
