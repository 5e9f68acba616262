"""Recipes that cannot be, in files and behind --set."""

from __future__ import annotations

from pathlib import Path

from corpus import Case, changed, nothing, wrote

TRAIN = "train small.yaml"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{below}'])}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)

ANCHORS = "a0: &a0 [1]\n" + "".join(f"a{depth}: &a{depth} [*a{depth - 1}]\n" for depth in range(1, 30))


def endless_chain() -> None:
    """Thirty files, each of which extends the next."""
    for number in range(30):
        Path(f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")


FILES = [
    Case(
        "anchors that hold one another",
        wrote("small.yaml", ANCHORS),
        TRAIN,
        "small.yaml:1: not valid YAML: blocks or lists nested more than 20 deep; a recipe has four levels",
    ),
    Case(
        "half a character",
        changed("extends", '"\\ud800": 1\nextends'),
        TRAIN,
        "small.yaml:1: not valid YAML: an unknown escape; write the character itself",
    ),
    Case(
        "endless chain of extends",
        endless_chain,
        "plan 0.yaml",
        "20.yaml:1: extends: more than 20 files extend one another in a row; use fewer",
    ),
    Case(
        "extends of an endless name",
        changed("demo", 300 * "a"),
        TRAIN,
        "small.yaml:1: extends: there is no "
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,"
        " and no recipe "
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:"
        " neither a file …",
    ),
    Case(
        "unknown key",
        changed("epochs: 2", "seed: 1\nepohcs: 2"),
        TRAIN,
        "small.yaml:4: epohcs: unknown key; did you mean epochs? (allowed: <keys of a recipe>)",
    ),
    Case(
        "unknown key of a block",
        changed("lr: 0.05", "lr: 0.05, momentun: 0.9"),
        TRAIN,
        "small.yaml:5: optim.momentun: unknown key; did you mean momentum? (allowed: <keys of sgd>)",
    ),
    Case(
        "unknown key two levels down",
        changed("warmup_epochs", "warmup"),
        TRAIN,
        "small.yaml:5: optim.schedule.warmup: unknown key; did you mean warmup_start? (allowed: name,"
        " warmup_epochs, warmup_start, end)",
    ),
    Case(
        "unknown key in a list",
        changed("path", "resolution: [{since: 0, sides: 28}], path"),
        TRAIN,
        "small.yaml:4: data.resolution[0].size: missing; expected a whole number above 0\n"
        "small.yaml:4: data.resolution[0].sides: unknown key; did you mean size? (allowed: since, "
        "size)",
    ),
    Case(
        "unknown key of a ramp",
        changed("path", "resolution: {start_size: 32, end_size: 64, ends: 1}, path"),
        TRAIN,
        "small.yaml:4: data.resolution.end: missing; …\n"
        "small.yaml:4: data.resolution.ends: unknown key; did you mean end? …",
    ),
    Case(
        "key of another method",
        changed("at: 1", "at: 1, sparse_epochs: 5"),
        TRAIN,
        "small.yaml:6: sparsity.sparse_epochs: unknown key (allowed: <keys of oneshot>)",
    ),
    Case(
        "text for a number",
        changed("epochs: 2", "epochs: two"),
        TRAIN,
        'small.yaml:3: epochs: expected a whole number above 0, found "two"',
    ),
    Case(
        "fraction for a whole number",
        changed("epochs: 2", "epochs: 2.0"),
        TRAIN,
        "small.yaml:3: epochs: expected a whole number above 0, found 2.0; write 2",
    ),
    Case(
        "number in quotes",
        changed("epochs: 2", 'epochs: "2"'),
        TRAIN,
        'small.yaml:3: epochs: expected a whole number above 0, found "2"; write 2 without quotes',
    ),
    Case(
        "no number at all",
        changed("lr: 0.05", "lr: 1e-4x"),
        TRAIN,
        'small.yaml:5: optim.lr: expected a number above 0, found "1e-4x"',
    ),
    Case(
        "pattern where a number stands",
        changed("lr: 0.05", "lr: 2:4"),
        TRAIN,
        'small.yaml:5: optim.lr: expected a number above 0, found "2:4"',
    ),
    Case(
        "negative",
        changed("lr: 0.05", "lr: -1e-4"),
        TRAIN,
        "small.yaml:5: optim.lr: expected a number above 0, found -0.0001",
    ),
    Case(
        "percent for a share",
        changed("target: 0.5", "target: 50"),
        TRAIN,
        "small.yaml:6: sparsity.target: expected a number of …, found 50; it is a share: 0.5, not 50",
    ),
    Case(
        "percent sign",
        changed("target: 0.5", "target: 50%"),
        TRAIN,
        'small.yaml:6: sparsity.target: expected …, found "50%"; write 0.5',
    ),
    Case(
        "truth in YAML 1.1",
        changed("epochs: 2", "epochs: 2\nchannels_last: off"),
        TRAIN,
        'small.yaml:4: channels_last: expected true or false, found "off"; write false',
    ),
    Case(
        "absurd number",
        changed("epochs: 2", "epochs: 1000000000000"),
        TRAIN,
        "small.yaml:3: epochs: expected at most 1,000,000, found 1,000,000,000,000",
    ),
    Case(
        "absurd number of threads",
        changed("epochs: 2", "epochs: 2\nthreads: 100000"),
        TRAIN,
        "small.yaml:4: threads: expected at most 1,000, found 100,000",
    ),
    Case(
        "name that is a path",
        changed("name: small", "name: ../small"),
        TRAIN,
        'small.yaml:2: name: expected a name of …, found "../small"',
    ),
    Case(
        "endless name",
        changed("name: small", f"name: {300 * 'a'}"),
        TRAIN,
        'small.yaml:2: name: expected a name of …, found "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…',
    ),
    Case(
        "duplicate key",
        changed("epochs: 2", "epochs: 2\nepochs: 3"),
        TRAIN,
        "small.yaml:4: epochs: given twice, first at small.yaml:3",
    ),
    Case(
        "missing key",
        changed("extends: demo\n", ""),
        TRAIN,
        "small.yaml: model: missing; expected a block with at least name\n"
        "small.yaml:4: optim.name: missing; expected adamw, lamb, lars or sgd",
    ),
    Case(
        "empty block",
        changed("{lr: 0.05, schedule: {warmup_epochs: 0}}", ""),
        TRAIN,
        "small.yaml:5: optim: expected a block …, found nothing; give a value or remove the line",
    ),
    Case(
        "unknown method",
        changed("oneshot", "onshot"),
        TRAIN,
        'small.yaml:6: sparsity.method: expected <methods>, found "onshot"; did you mean oneshot?',
    ),
    Case(
        "unknown optimiser",
        changed("{lr", "{name: adam, lr"),
        TRAIN,
        'small.yaml:5: optim.name: expected adamw, lamb, lars or sgd, found "adam"; did you mean adamw?',
    ),
    Case(
        "unknown schedule",
        changed("{warmup", "{name: cosin, warmup"),
        TRAIN,
        'small.yaml:5: optim.schedule.name: expected cosine, linear or step, found "cosin"; did you mean cosine?',
    ),
    Case(
        "unknown model",
        changed("epochs: 2", "epochs: 2\nmodel: {name: resnet81}"),
        TRAIN,
        "there is no model 'resnet81'; did you mean resnet8 (local), resnet18 (local, torchvision, timm), "
        "resnet61q (timm)? Local models: <our models>. For the others, use …",
    ),
    Case(
        "unknown task",
        changed("epochs: 2", "epochs: 2\ntask: {name: segmentation}"),
        TRAIN,
        "small.yaml:4: task.name: expected causal_lm, glue/rte, glue/qnli, glue/mrpc, glue/sst2, glue/cola, glue/stsb, "
        'glue/mnli, glue/qqp, multiclass, multilabel or sentence_class, found "segmentation"',
    ),
    Case(
        "pruning after the end",
        changed("at: 1", "at: 7"),
        TRAIN,
        "small.yaml:6: sparsity.at: the weights would be pruned at epoch 7, but epoch 1 is the last; make it earlier",
    ),
    Case(
        "milestone after the end",
        changed("{warmup", "{name: step, milestones: [1, 9], warmup"),
        TRAIN,
        "small.yaml:5: optim.schedule.milestones: the run ends after 2 epochs, before 9",
    ),
    Case(
        "target that the pattern forbids",
        changed("target: 0.5", "target: 0.9, pattern: 2:4"),
        TRAIN,
        "small.yaml:6: sparsity.target: 2:4 keeps 2 of every 4 weights, a sparsity of 0.5, found 0.9; write "
        "target: 0.5, or take another pattern",
    ),
    Case(
        "phases that do not fit",
        changed("epochs: 2", "epochs: 15"),
        "train small.yaml --set 'sparsity={method: acdc, target: 0.9}'",
        "--set sparsity: sparsity.sparse_epochs: 15 epochs leave 0 between the "
        "warm-up (2) and …: change a length, or train 33 epochs",
    ),
    Case(
        "crop larger than the image",
        changed("path", "val_crop: 300, path"),
        TRAIN,
        "small.yaml:4: data.val_crop: 300 is larger than val_resize, 28",
    ),
    Case(
        "missing file",
        nothing,
        "train nowhere.yaml",
        "no recipe nowhere.yaml: neither a file nor a shipped recipe (see: acdc recipes list)",
    ),
    Case(
        "misspelt shipped recipe",
        nothing,
        "plan demo_gnp",
        "no recipe demo_gnp: neither …; did you mean demo_gmp? …",
    ),
    Case(
        "folder", nothing, "plan photos", "photos is a folder; give a recipe file, or a name from `acdc recipes list`"
    ),
    Case(
        "circular extends",
        changed("extends: demo", "extends: small.yaml"),
        TRAIN,
        "small.yaml:1: extends: is circular: small.yaml → small.yaml; remove one extends",
    ),
    Case(
        "extends of nothing",
        changed("extends: demo", "extends: dmo"),
        TRAIN,
        "small.yaml:1: extends: there is no dmo, and no recipe dmo: neither a file nor a shipped "
        "recipe; did you mean demo? (see: acdc recipes list)",
    ),
    Case(
        "extends of several",
        changed("extends: demo", "extends: [demo, demo_gmp]"),
        TRAIN,
        'small.yaml:1: extends: expected …, found ["demo", "demo_gmp"]',
    ),
    Case(
        "empty extends",
        changed("extends: demo", "extends:"),
        TRAIN,
        "small.yaml:1: extends: expected the path of one recipe, …, found nothing",
    ),
    Case(
        "tab",
        changed("epochs: 2", "model:\n\tname: resnet8"),
        TRAIN,
        "small.yaml:4: not valid YAML: found character '\\t' that cannot start any token; …",
    ),
    Case(
        "open bracket",
        changed("{lr", "[lr"),
        TRAIN,
        "small.yaml:5: not valid YAML: expected ',' or ']', but got '}' in the text that begins on line 5; a "
        "bracket is not closed",
    ),
    Case(
        "open quote",
        changed("name: small", 'name: "small'),
        TRAIN,
        "small.yaml:7: not valid YAML: found unexpected end of stream in the text that begins on line 2; "
        "a quote is not closed",
    ),
    Case(
        "wrong indentation",
        changed("epochs: 2", "  epochs: 2"),
        TRAIN,
        "small.yaml:3: not valid YAML: mapping values are not allowed here; …",
    ),
    Case(
        "empty file",
        wrote("small.yaml", ""),
        TRAIN,
        "small.yaml: a recipe is a block of keys such as `epochs: 100`, found nothing",
    ),
    Case(
        "nothing but a comment",
        wrote("small.yaml", "# to do\n"),
        TRAIN,
        "small.yaml: a recipe is a block of keys …, found nothing",
    ),
    Case(
        "list",
        wrote("small.yaml", "- a\n- b\n"),
        TRAIN,
        "small.yaml: a recipe is a block of keys …, found a list",
    ),
    Case(
        "prose",
        wrote("small.yaml", 1000 * "word "),
        TRAIN,
        "small.yaml: a recipe is a block of keys …, found 'word word word word word word word word…",
    ),
    Case(
        "binary file",
        wrote("small.yaml", b"\x80\x02\xff\x00"),
        TRAIN,
        "small.yaml: not a recipe, or not saved as UTF-8 text",
    ),
    Case(
        "another encoding",
        wrote("small.yaml", "name: é".encode("latin-1")),
        TRAIN,
        "small.yaml: not a recipe, …",
    ),
    Case(
        "zero byte",
        changed("small", "sm\0all"),
        TRAIN,
        "small.yaml:2: not valid YAML: special characters are not allowed ('\\x00'); remove it",
    ),
    Case(
        "enormous file",
        wrote("small.yaml", 100_000 * "# x\n"),
        TRAIN,
        "small.yaml: 400,000 bytes are too many for a recipe, which has a few thousand",
    ),
    Case(
        "weights",
        nothing,
        "recipes show run/dense.safetensors",
        "run/dense.safetensors: … bytes are too many for a recipe, …",
    ),
    Case(
        "deep nesting",
        changed("epochs: 2", f"epochs: {500 * '['}{500 * ']'}"),
        TRAIN,
        "small.yaml:3: not valid YAML: blocks or lists …",
    ),
    Case(
        "aliases that multiply",
        wrote("small.yaml", BOMB),
        TRAIN,
        "small.yaml:1: not valid YAML: more than 5,000 values, aliases included; a recipe has about a hundred",
    ),
    Case(
        "alias in its own anchor",
        changed("epochs: 2", "epochs: &a [*a]"),
        TRAIN,
        "small.yaml:3: not valid YAML: an anchor that contains itself; remove the alias in it",
    ),
    Case(
        "alias of nothing",
        changed("epochs: 2", "epochs: *few"),
        TRAIN,
        "small.yaml:3: not valid YAML: found undefined alias 'few'; put a value that begins with * in quotes",
    ),
    Case(
        "tag that would run code",
        changed("small", "!!python/object/apply:os.mkdir [opened]"),
        TRAIN,
        "small.yaml:2: not valid YAML: the tag tag:yaml.org,2002:python/object/apply:os.mkdir has no "
        "meaning in a recipe; remove it",
    ),
    Case(
        "two documents",
        changed("epochs: 2", "---\nepochs: 2"),
        TRAIN,
        "small.yaml:3: not valid YAML: expected a single document …; a recipe is one document, without `---` in …",
    ),
    Case(
        "merge of no block",
        changed("epochs: 2", "<<: 3\nepochs: 2"),
        TRAIN,
        "small.yaml:3: not valid YAML: `<<` takes a mapping or a list of mappings",
    ),
    Case(
        "escape of no character",
        changed("name: small", 'name: "\\U00110000"'),
        TRAIN,
        "small.yaml:2: not valid YAML: an unknown escape; …",
    ),
    Case(
        "key that is a block",
        changed("epochs: 2", "? {a: 1}\n: 2"),
        TRAIN,
        "small.yaml:3: not valid YAML: a key must be text; write KEY: VALUE",
    ),
]

OVERRIDES = [
    Case(
        "--set without a value",
        nothing,
        f"{TRAIN} --set epochs",
        "--set epochs: expected KEY=VALUE, for example --set optim.lr=0.1",
    ),
    Case(
        "--set with an empty key",
        nothing,
        f"{TRAIN} --set optim..lr=1",
        "--set optim..lr=1: expected KEY=VALUE, …",
    ),
    Case(
        "--set of an unknown key",
        nothing,
        f"{TRAIN} --set optim.learning_rate=1",
        "--set optim.learning_rate: unknown key (allowed: <keys of sgd>)",
    ),
    Case(
        "--set of a wrong value",
        nothing,
        f"{TRAIN} --set epochs=many",
        '--set epochs: expected a whole number above 0, found "many"',
    ),
    Case(
        "--set of an empty value",
        nothing,
        f"{TRAIN} --set epochs=",
        "--set epochs: expected a whole number above 0, found nothing; …",
    ),
    Case(
        "--set of broken YAML",
        nothing,
        f"{TRAIN} --set sparsity=[1",
        "--set sparsity: not valid YAML: expected ',' or ']', but got '<stream end>' …; a bracket is not closed",
    ),
    Case(
        "--set of a duplicate key",
        nothing,
        f"{TRAIN} --set 'optim={{lr: 1, lr: 2}}'",
        "--set optim: lr: given twice, first at --set optim",
    ),
    Case("--set extends", nothing, f"{TRAIN} --set extends=demo", "--set extends: only a file can extend another"),
    Case(
        "--set in a list",
        nothing,
        f"{TRAIN} --set data.mean[0]=0.1",
        "--set data.mean[0]: unknown key; did you mean mean? (allowed: <keys of data>)",
    ),
    Case(
        "--set below a value",
        nothing,
        f"{TRAIN} --set epochs.few=1",
        "small.yaml:3: epochs: expected a whole number above 0, found a block with the keys few",
    ),
    Case(
        "--set of an endless key",
        nothing,
        f"{TRAIN} --set {'.'.join(99 * 'a')}=1",
        "--set "
        "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a=1:"
        " expected KEY=VALUE, …",
    ),
    Case(
        "more mistakes than anyone reads",
        changed("name: small", "".join(f"key{number}: 1\n" for number in range(30)) + "name: small"),
        TRAIN,
        "".join(
            f"small.yaml:{2 + number}: key{number}: unknown key (allowed: <keys of a recipe>)\n" for number in range(20)
        )
        + "… and 10 more",
    ),
    Case(
        "several mistakes at once",
        nothing,
        f"{TRAIN} --set epochs=-1 --set sede=3",
        "--set epochs: expected a whole number above 0, found -1\n--set sede: unknown key; did you mean seed? …",
    ),
]
