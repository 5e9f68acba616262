"""Running texts: WikiText-103, and any folder of text files."""

from acdc_cli.data.known_texts import KnownText

TEXTS = {
    "wikitext103": KnownText(
        description="Wikipedia articles, 103 million words; --source: the folder of its .tokens files",
        vocabulary=267_735,
        train_tokens=103_227_021,
        files=("wiki.{}.tokens", "{}.txt"),
    ),
    "kjv": KnownText(
        description="King James Bible; --source: the folder that scripts/kjv.py makes of Debian's package bible-kjv",
        at_least=20,
        vocabulary=2_309,
        train_tokens=857_795,
    ),
    "text": KnownText(
        description="any folder with train.txt and valid.txt, and perhaps test.txt; --tokenizer words or bpe:SIZE",
    ),
}
