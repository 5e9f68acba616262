"""The study file: what it becomes, what is said of each thing that is wrong with it, and those that are shipped."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from shipped_runs import recipes

from acdc_cli.errors import RecipeError
from acdc_cli.jobs import setup
from acdc_cli.recipe import shipped
from acdc_cli.recipe.kinds import methods
from acdc_cli.recipe.load import load
from acdc_cli.sparsity.alternation import AlternationBlock
from acdc_cli.studies.study import Study, load_study

NAMES = shipped.study_names()
HEAD = "name: foo\nbase: demo\n"
TOP = "name, base, set, axes, zip, exclude, adjust, fork, budget, analyses"
VALUE = "a number, text, true, false, null or {label: NAME, set: {KEY: VALUE, …}}"


def study(text: str) -> Study:
    Path("foo.yaml").write_text(HEAD + text, encoding="utf-8")
    return load_study("foo.yaml")


def refusal(text: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        study(text).recipes()
    return str(error.value).splitlines()


def test_dense_a_share_and_a_label_are_values_of_sparsity(in_tmp: Path) -> None:
    loaded = study("axes: {sparsity: [dense, 0.8, {label: gmp, set: {sparsity.method: gmp}}]}\n")
    assert [(cell.key, cell.axes, cell.overrides) for cell in loaded.cells()] == [
        ("sparsity=dense", {"sparsity": "dense"}, ("sparsity.method=dense",)),
        ("sparsity=0.8", {"sparsity": 0.8}, ("sparsity.target=0.8",)),
        ("sparsity=gmp", {"sparsity": "gmp"}, ("sparsity.method=gmp",)),
    ]
    recipes = loaded.recipes()
    assert [recipes[key].as_dict()["sparsity"].get("target") for key in recipes] == [None, 0.8, 0.9]


@pytest.mark.parametrize("axes", ["{sparsity: [dense, 0.8], epochs: %s}", "{epochs: %s, sparsity: [dense, 0.8]}"])
def test_a_dense_run_has_nothing_of_the_block_it_replaces_whatever_another_axis_sets_there(
    in_tmp: Path, axes: str
) -> None:
    short = "[{label: 4, set: {epochs: 4, sparsity.sparse_epochs: 1, sparsity.last_dense_epochs: 1}}]"
    common = "set: {sparsity.warmup_epochs: 1, sparsity.dense_epochs: 1, sparsity.last_sparse_epochs: 1}\n"
    recipes = list(study(f"{common}axes: {axes % short}\n").recipes().values())
    assert [recipe.epochs for recipe in recipes] == [4, 4]
    dense, sparse = (recipe.as_dict()["sparsity"] for recipe in recipes)
    assert dense == load("demo_dense").as_dict()["sparsity"] == {"method": "dense"}
    assert (sparse["target"], sparse["sparse_epochs"], sparse["warmup_epochs"]) == (0.8, 1, 1)


def test_values_that_yaml_would_misread_arrive_as_they_are(in_tmp: Path) -> None:
    texts = "sparsity.pattern: ['2:4'], track.group: ['null', '0.1', 'a: b']"
    recipes = study(f"axes: {{sparsity.target: [0.5], {texts}, checkpoint.every_minutes: [null]}}\n").recipes()
    assert [recipe.track.group for recipe in recipes.values()] == ["null", "0.1", "a: b"]
    assert {recipe.checkpoint.every_minutes for recipe in recipes.values()} == {None}
    assert {recipe.as_dict()["sparsity"]["pattern"] for recipe in recipes.values()} == {"2:4"}


def test_the_base_is_a_file_beside_the_study_or_a_shipped_recipe(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sub").mkdir()
    Path("sub/demo").write_text("extends: demo.yaml\nname: mine\n")
    Path("sub/demo.yaml").write_text("extends: demo_gmp\nname: below\n")
    Path("sub/foo.yaml").write_text(HEAD + "axes: {seed: [0]}\n")
    loaded = load_study("sub/foo.yaml")
    monkeypatch.chdir("sub")
    assert [recipe.name for recipe in loaded.recipes().values()] == ["mine"]
    assert study("axes: {seed: [0]}\n").text == Path("foo.yaml").read_text()
    Path("demo").unlink()
    assert [recipe.name for recipe in load_study("foo.yaml").recipes().values()] == ["demo"]


def test_the_budget_and_whether_lengths_may_be_doubled_are_told(in_tmp: Path) -> None:
    plain = study("axes: {epochs: [16], seed: [0]}\nbudget: {runs: 3, train_flops: 1e18}\n")
    assert (plain.until_converged, plain.budget.limits()) == (False, {"runs": 3, "train_flops": 1e18})
    axes = "axes: {epochs: {values: [8, {label: 16, set: {epochs: 16}}], until_converged: true}, seed: [0, 1]}"
    longer = study(f"{axes}\nbudget: {{epochs: 99}}\n")
    assert longer.until_converged
    assert [cell.overrides[0] for cell in longer.cells()] == ["epochs=8"] * 2 + ["epochs=16"] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exes: 3\naxes: {seed: [0]}", [f"3: exes: unknown key; did you mean axes? (allowed: {TOP})"]),
        ("extends: demo\naxes: {seed: [0]}", [f"3: extends: unknown key (allowed: {TOP})"]),
        ("", [": axes: missing; expected at least one axis such as `seed: [0, 1, 2]`"]),
        ("axes: {}", ["3: axes: expected at least one axis such as `seed: [0, 1, 2]`, found an empty block"]),
        (
            "axes: {epochs: {value: [1]}, seed: 3}",
            [
                f"3: axes.epochs.values: missing; expected a list, each {VALUE}",
                "3: axes.epochs.value: unknown key; did you mean values? (allowed: values, until_converged)",
                "3: axes.seed: expected a list of values, or a block with the keys values, until_converged, found 3",
            ],
        ),
        (
            "axes:\n  seed: [[1]]\n  foo:\n    - {lable: a, set: {}}\n    - {label: a}",
            [
                f"4: axes.seed[0]: expected {VALUE}, found [1]",
                "6: axes.foo[0].label: missing; expected text, a whole number or a number",
                "6: axes.foo[0].lable: unknown key; did you mean label? (allowed: label, set)",
                "7: axes.foo[1].set: missing; expected a block of keys",
            ],
        ),
        ("axes: {seed: []}", ["3: axes.seed: expected at least one value, found none; remove the axis"]),
        ("axes: {seed: [0, 1, 0]}", ["3: axes.seed[2]: 0 is given twice"]),
        ("axes: {seed: [0]}\naxes: {seed: [1]}", ["4: axes: given twice, first at foo.yaml:3"]),
        (
            "axes: {seed: [0]}\nbudget: {run: 1, epochs: 0}",
            [
                "4: budget.epochs: expected a whole number above 0 or null, found 0",
                "4: budget.run: unknown key; did you mean runs? (allowed: runs, epochs, train_flops)",
            ],
        ),
        # axes that advance together
        ("axes: {seed: [0]}\nzip: [[seed]]", ['4: zip[0]: expected at least two axes, found ["seed"]']),
        (
            "axes: {seed: [0], epochs: [16]}\nzip: [[sed, epochs]]",
            ["4: zip[0]: sed is not an axis; did you mean seed? (axes: seed, epochs)"],
        ),
        (
            "axes: {seed: [0, 1], epochs: [16]}\nzip: [[seed, epochs]]",
            ["4: zip[0]: axes that advance together need the same number of values; seed has 2, epochs has 1"],
        ),
        (
            "axes: {seed: [0], epochs: [16], threads: [1]}\nzip: [[seed, epochs], [seed, threads]]",
            [
                f"4: zip[{group}]: seed occurs twice; name it once, with all axes that advance with it"
                for group in range(2)
            ],
        ),
        # what is left out
        (
            "axes: {seed: [0, 1]}\nexclude: [{sead: 0}, {seed: 2}, {}]",
            [
                "4: exclude[0].sead: sead is not an axis; did you mean seed? (axes: seed)",
                "4: exclude[1].seed: expected 0 or 1, found 2",
                "4: exclude[2]: without an axis it would exclude every run; remove it",
            ],
        ),
        (
            "axes: {seed: [0, 1]}\nadjust: [{where: {seed: 2, sead: 0}, set: {epochs: 8}}, {where: {}, set: {}}]",
            [
                "4: adjust[1].where: expected at least one axis and a value of it, such as `sparsity: 0.98`, "
                "found an empty block"
            ],
        ),
        (
            "axes: {seed: [0, 1]}\nadjust: [{where: {seed: 2, sead: 0}, set: {epochs: 8}}]",
            [
                "4: adjust[0].where.seed: expected 0 or 1, found 2",
                "4: adjust[0].where.sead: sead is not an axis; did you mean seed? (axes: seed)",
            ],
        ),
        (
            "axes: {seed: [0, 1]}\nexclude: [{seed: 0}, {seed: 1}]",
            ["4: exclude: every run is excluded; remove some exclusions"],
        ),
        # lengths that may be doubled
        (
            "axes: {epochs: {values: [16], until_converged: true}, seed: [0, 1]}",
            [
                "3: axes.epochs.until_converged: it needs at least two lengths and two seeds to tell whether accuracy "
                "rises; add more",
                "3: axes.epochs.until_converged: without a `budget` it might never end; set one",
            ],
        ),
        (
            "axes: {epochs: {values: [16, 20], until_converged: true}, seed: [0, 1]}\nbudget: {runs: 9}\n"
            "fork: [{where: {seed: 1}, run: {seed: 0}, after: 4}]",
            ["5: fork: runs that `until_converged` adds cannot be forks; leave out one of them"],
        ),
        ("axes: {'': [1], seed: [0]}", ["3: axes.: expected a name or a key, found nothing"]),
        (
            "axes: {seed: {values: [0, 1], until_converged: true}}\nbudget: {runs: 9}",
            ["3: axes.seed.until_converged: it applies only to the axis `epochs`, not to seed"],
        ),
        (
            "axes: {epochs: {values: [4, {label: short, set: {epochs: 8}}], until_converged: true}, seed: [0, 1]}\n"
            "zip: [[epochs, seed]]\nbudget: {runs: 9}",
            [
                "3: axes.epochs.values[1]: the label of a length must equal its `epochs`; found short",
                "3: axes.epochs.until_converged: `epochs` advances with another axis, which has no values for "
                "longer runs",
                "3: axes.epochs.values[1]: a length to be doubled must be a whole number; found short",
            ],
        ),
        (
            "axes: {epochs: [4, {label: 16, set: {epochs: 8}}, {label: long, set: {optim.lr: 1}}]}",
            [
                "3: axes.epochs[1]: the label of a length must equal its `epochs`; found 16",
                "3: axes.epochs[2]: the label of a length must equal its `epochs`; found long",
            ],
        ),
        (
            "axes: {sparsity: [dense, 0.9], sparsity.target: [0.8, 0.9]}",
            ["3: axes.sparsity.target: it sets sparsity.target, and so does the axis sparsity; remove one of them"],
        ),
        (
            f"axes: {{track.group: [{'a' * 200}]}}",
            [f"3: axes: track.group={'a' * 48}… is too long for a directory name; give long values a label"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_the_way_out(in_tmp: Path, text: str, said: list[str]) -> None:
    assert refusal(f"{text}\n") == [f"foo.yaml{line}" if line.startswith(":") else f"foo.yaml:{line}" for line in said]


def test_a_base_that_is_not_there_is_told_with_all_else(in_tmp: Path) -> None:
    Path("foo.yaml").write_text("name: a b\nbase: demo_gpm\naxes: {seed: 1}\n")
    with pytest.raises(RecipeError) as error:
        load_study("foo.yaml")
    lines = str(error.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["foo.yaml:1:", "foo.yaml:2:", "foo.yaml:3:"]
    assert "base: no recipe demo_gpm: " in lines[1]
    assert "did you mean demo_gmp?" in lines[1]


def test_the_misfits_of_all_runs_are_told_at_once_each_with_its_runs(in_tmp: Path) -> None:
    lines = refusal("axes: {sparsity: [dense, 80], epochs: [4, 16], optim.lr: [0.1, zero]}\n")
    assert [line.partition(": expected ")[0] for line in lines] == [
        "sparsity=dense,epochs=4,optim.lr=zero and 3 others: --set optim.lr",
        "sparsity=80,epochs=4,optim.lr=0.1 and 3 others: --set sparsity.target",
    ]
    (line,) = refusal("axes: {sparsity: [dense, 0.8], epochs: [4, 16]}\n")
    assert line.startswith("sparsity=0.8,epochs=4: ")
    assert "4 epochs leave 0" in line
    (line,) = refusal("axes: {optim.lrr: [0.1], seed: [0, 1]}\n")
    assert line.startswith("optim.lrr=0.1,seed=0 and 1 other: --set optim.lrr: unknown key; did you mean lr?")


def test_of_many_problems_the_first_are_told_and_the_rest_are_counted(in_tmp: Path) -> None:
    lines = refusal(f"axes: {{optim.lr: [{', '.join(str(-number) for number in range(30))}]}}\n")
    assert (len(lines), lines[-1]) == (21, "… and 10 more")


def test_no_run_is_made_twice(in_tmp: Path) -> None:
    text = (
        "axes: {method: [{label: dense, set: {sparsity.method: dense}}, {label: acdc, set: {}}], sparsity: [0.8, 0.9]}"
    )
    assert refusal(f"{text}\n") == [
        "method=dense,sparsity=0.9 is the same run as method=dense,sparsity=0.8; leave it out with `exclude`"
    ]
    assert len(study(f"{text}\nexclude: [{{method: dense, sparsity: 0.9}}]\n").recipes()) == 3


@pytest.mark.parametrize("text", ["", "- a\n"])
def test_a_file_that_is_no_study_is_refused(in_tmp: Path, text: str) -> None:
    Path("foo.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"^foo.yaml: a study is a block of keys such as `base: demo`, found"):
        load_study("foo.yaml")


# the studies that come with the package


def test_these_studies_are_shipped_and_are_no_recipes() -> None:
    assert NAMES == [
        "celeba_epoch_length", "cifar100", "cifar10_epoch_length", "cifar10_methods", "decompression_sparsity",
        "dense_fraction",
        "epoch_length", "epoch_length_demo", "figure3", "glue", "imagenet_c", "kjv_methods", "memorisation", "methods",
        "methods_demo",
        "minilm_kjv", "mobilenet", "multidigits_epoch_length", "pairs", "patterns",
        "phase_length", "revive_cifar10", "revive_digits", "section4", "small_dense", "table1", "table2", "table3",
        "table4",
        "weight_decay", "zero_channels",
    ]  # fmt: skip
    assert not any("studies" in name for name in shipped.names())


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_shipped_study_loads_and_lies_within_its_budget(name: str) -> None:
    study, by_key = load_study(name), recipes(name)
    assert study.name == name
    assert list(by_key) == [cell.key for cell in study.cells()]
    totals = {"runs": len(by_key), "epochs": sum(recipe.epochs for recipe in by_key.values())}
    assert all(totals[key] <= limit for key, limit in study.budget.limits().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_says_what_it_asks(name: str) -> None:
    assert 10 < len(shipped.description(shipped.find_study(name))) < 80


def test_the_doubled_lengths_fit_as_well_as_those_that_are_named() -> None:
    study = load_study("epoch_length_demo")
    assert study.until_converged
    longest = study.cells()[-1]
    for doublings in range(1, 5):
        epochs = longest.axes["epochs"] * 2**doublings
        assert load(study.base_recipe, [*longest.overrides, f"epochs={epochs}"]).epochs == epochs


def test_ac_dc_keeps_its_phases_of_5_epochs_at_every_length_of_p2s_figure() -> None:
    by_key = recipes("epoch_length")
    assert len(by_key) == 5 * 6 * 3
    assert {recipe.epochs for recipe in by_key.values()} == {25, 50, 100, 200, 500, 1000}
    for epochs, lengths in ((25, [3, 5, 5, 5, 3, 4]), (50, [5, *[5] * 6, 15]), (100, [10, *[5] * 13, 10, 15])):
        block = by_key[f"sparsity=0.95,epochs={epochs},seed=0"].sparsity
        assert isinstance(block, AlternationBlock)
        assert [phase.end - phase.start for phase in block.phases(epochs).phases] == lengths
    plain = load("resnet50_95").as_dict()
    assert by_key["sparsity=0.95,epochs=100,seed=0"].as_dict() == plain
    assert by_key["sparsity=dense,epochs=100,seed=0"].as_dict() == plain | {"sparsity": {"method": "dense"}}


def test_the_demo_is_short_and_has_the_budget_to_double_two_sparsities_lengths_the_sparsest_first() -> None:
    study, by_key = load_study("epoch_length_demo"), recipes("epoch_length_demo")
    assert {recipe.epochs for recipe in by_key.values()} == {4, 8, 16, 32}
    assert list(dict.fromkeys(cell.axes["sparsity"] for cell in study.cells())) == [0.98, 0.95, 0.9, 0.8, "dense"]
    spent = sum(recipe.epochs for recipe in by_key.values())
    # 1,300 take about 17 of the 20 minutes it may have on two cores
    assert spent + 2 * 3 * 64 <= study.budget.limits()["epochs"] <= 1300
    assert {recipe.optim.clip_norm for recipe in by_key.values()} == {1.0}


@pytest.mark.parametrize(
    ("study", "cell", "recipe", "overrides"),
    [
        ("table1", "method=dense,sparsity=0.8", "resnet50_dense", []),
        ("table1", "method=acdc,sparsity=0.8", "resnet50_80", []),
        ("table1", "method=rigl,sparsity=0.9", "rigl_resnet50_90", []),
        ("table1", "method=rigl%20erk,sparsity=0.9", "rigl_resnet50_90_erk", []),
        ("table1", "method=topkast,sparsity=0.9", "topkast_resnet50_90", []),
        ("table1", "method=str,sparsity=0.9", "str_resnet50", []),
        ("table1", "method=woodfisher,sparsity=0.9", "woodfisher_resnet50_90", []),
        ("table2", "method=acdc,sparsity=0.95", "resnet50_95", []),
        ("table2", "method=acdc,sparsity=0.98", "resnet50_98", []),
        ("table2", "method=rigl,sparsity=0.95", "rigl_resnet50_90", ["sparsity.target=0.95"]),
        ("table2", "method=rigl%20erk,sparsity=0.95", "rigl_resnet50_90_erk", ["sparsity.target=0.95"]),
        (
            "table2", "method=topkast,sparsity=0.98", "topkast_resnet50_90",
            ["sparsity.target=0.98", "sparsity.backward_sparsity=0.9"],
        ),
        ("table2", "method=str,sparsity=0.95", "str_resnet50", ["optim.weight_decay=0.000030517578125"]),
        (
            "table2", "method=woodfisher,sparsity=0.98", "woodfisher_resnet50_90",
            ["sparsity.target=0.98", "sparsity.fisher_block=1000"],
        ),
        ("table3", "method=dense,sparsity=0.75", "mobilenetv1_dense", []),
        ("table3", "method=acdc,sparsity=0.75", "mobilenetv1_75", []),
        ("table3", "method=acdc%20depthwise%20dense,sparsity=0.9", "mobilenetv1_90_depthwise_dense", []),
        ("table3", "method=rigl%20erk,sparsity=0.9", "rigl_mobilenetv1_90", []),
        ("table3", "method=str,sparsity=0.9", "str_mobilenetv1", []),
        ("table4", "method=dense,sparsity=0.8", "transformer_xl_dense", []),
        ("table4", "method=acdc,sparsity=0.9", "transformer_xl_90", []),
        ("table4", "method=acdc%20embeddings%2050,sparsity=0.8", "transformer_xl_80_embed50", []),
        ("figure3", "method=acdc,sparsity=0.95,epochs=200", "resnet50_95_uniform", ["epochs=200"]),
        ("figure3", "method=topkast,sparsity=0.9,epochs=100", "topkast_resnet50_90", []),
        ("figure3", "method=rigl,sparsity=0.9,epochs=500", "rigl_resnet50_90", ["epochs=500"]),
        (
            "figure3", "method=acdc%20short%20dense,sparsity=0.9,epochs=100", "resnet50_90_short_dense",
            ["sparsity.distribution=uniform", "sparsity.keep_dense=[first, last]"],
        ),
        ("section4", "variant=50%20%25", "resnet50_50", []),
        ("section4", "variant=2%3A4", "resnet50_2to4", []),
        ("section4", "variant=first%20and%20last%20dense%2095%20%25", "resnet50_95_first_last_dense", []),
        ("section4", "variant=dense%20phases%20of%202%20epochs%2090%20%25", "resnet50_90_short_dense", []),
        ("pairs", "model=sparse,sparsity=0.9", "resnet50_90", ["checkpoint.keep_states=[85]"]),
        (
            "pairs", "model=finetuned,sparsity=0.9", "resnet50_90_finetune",
            ["sparsity.last_phase=dense_last", "fork=model=sparse,sparsity=0.9,seed=0@85"],
        ),
        ("pairs", "model=gmp,sparsity=0.8", "gmp_resnet50_80", []),
        ("memorisation", "sparsity=0.95", "cifar10_resnet20_95_corrupt_labels", []),
        ("cifar100", "phases=20%20and%2020,sparsity=0.75", "cifar100_wideresnet_75", []),
    ],
)  # fmt: skip
def test_a_run_of_p1s_studies_is_the_recipe_of_its_row(
    study: str, cell: str, recipe: str, overrides: list[str]
) -> None:
    ours, alone = recipes(study)[f"{cell},seed=0"].as_dict(), load(f"neurips21/{recipe}", overrides).as_dict()
    for block in (ours, alone):
        if not block["optim"]["schedule"]["warmup_epochs"]:
            del block["optim"]["schedule"]["warmup_start"]
    assert ours == alone | {"name": ours["name"]}


def test_p1s_studies_have_its_rows_and_three_seeds() -> None:
    rows = {"table1": 13, "table2": 11, "table3": 9, "figure3": 16, "section4": 8, "pairs": 6, "memorisation": 4}
    for name, count in (rows | {"cifar100": 9}).items():
        assert len(recipes(name)) == 3 * count
        assert {recipe.seed for recipe in recipes(name).values()} == {0, 1, 2}
    assert all(load_study(name).cells()[0].key.endswith("seed=0") for name in rows)


def test_each_seed_of_gmp_prunes_the_dense_model_of_its_seed() -> None:
    for seed in (0, 1, 2):
        block = recipes("pairs")[f"model=gmp,sparsity=0.9,seed={seed}"].as_dict()["sparsity"]
        assert block["from_checkpoint"] == f"runs/neurips21_resnet50_dense-{seed}"


def test_p2s_tables_are_asked_for_value_by_value() -> None:
    decay = [recipe.optim.weight_decay for recipe in recipes("weight_decay").values()]
    assert sorted(set(decay)) == [1e-6, 1e-5, 1e-4, 1e-3]
    sparse = [recipe.as_dict()["sparsity"] for recipe in recipes("decompression_sparsity").values()]
    assert sorted({block["dense_sparsity"] for block in sparse}) == [0, 0.5, 0.6, 0.7, 0.8]
    lengths = recipes("phase_length").values()
    assert [recipe.as_dict()["sparsity"]["sparse_epochs"] for recipe in lengths if recipe.seed == 0] == [1, 5, 10, 50]
    assert all(block["last_sparse_epochs"] == 15 for block in (recipe.as_dict()["sparsity"] for recipe in lengths))
    patterns = {(block["pattern"], block["distribution"], block["target"]) for block in _sparsities("patterns")}
    assert patterns == {
        (pattern, distribution, target)
        for pattern, distribution in (("unstructured", "global"), ("unstructured", "uniform"), ("block4", "global"))
        for target in (0.8, 0.9, 0.95, 0.98)
    }


def _sparsities(name: str) -> list[dict[str, object]]:
    return [recipe.as_dict()["sparsity"] for recipe in recipes(name).values()]


def test_the_shares_of_p2_h_are_those_of_the_phases() -> None:
    by_key = recipes("dense_fraction")
    for share in (0.2, 0.5, 0.8):
        block = by_key[f"sparse_fraction={share},seed=0"].sparsity
        assert isinstance(block, AlternationBlock)
        _, *middle, last_dense, last_sparse = block.phases(1000).phases
        sparse = sum(phase.end - phase.start for phase in middle if phase.kind == "sparse")
        # a dense phase fewer: the last one is longer
        epochs = sum(phase.end - phase.start for phase in middle) + block.lengths[1]
        assert sparse / epochs == pytest.approx(share)
        assert (last_sparse.end - last_sparse.start, abs(last_dense.end - last_dense.start - 10) <= 3) == (15, True)
    assert by_key["sparse_fraction=0,seed=0"].as_dict()["sparsity"] == {"method": "dense"}
    assert by_key["sparse_fraction=1,seed=0"].sparsity.method == "oneshot"


@pytest.mark.parametrize("method", ["gmp", "rigl", "dense"])
def test_a_method_of_p2_p_trains_as_in_the_recipe_of_its_name(method: str) -> None:
    sparsity = 0.9 if method == "dense" else 0.95
    recipe = recipes("methods")[f"method={method},sparsity={sparsity},epochs=100,seed=0"]
    of_its_own = load(
        "resnet50_dense" if method == "dense" else f"{method}_resnet50_95", ["checkpoint.keep_masks_every=5"]
    )
    assert recipe.as_dict() | {"name": of_its_own.name} == of_its_own.as_dict()


def test_the_masks_of_p2_j_are_those_of_its_epochs() -> None:
    from acdc_cli.studies.study_analyses import _Forecasts

    study, of = load_study("methods"), _Forecasts(recipes("methods"))
    cells = {cell.key: cell for cell in study.cells()}
    runs = {
        method: of(cells[f"method={method},sparsity=0.98,epochs=1000,seed=0"]) for method in ("acdc", "gmp", "rigl")
    }
    sparse_ends = [*range(104, 975, 10)]
    epochs = {method: [kept.epoch for kept in run.masks] for method, run in runs.items()}
    assert [epoch for epoch in epochs["acdc"] if epoch < 985] == sparse_ends
    assert set(epochs["acdc"]) <= set(epochs["gmp"]) & set(epochs["rigl"])
    # as printed: 109, 119, …, 999, where dense phases end
    models = {kept.epoch: kept.kind for kept in runs["acdc"].models if kept.epoch >= 109}
    assert list(models) == [*range(109, 1000, 10)]
    assert {kind for epoch, kind in models.items() if epoch < 985} == {"dense"}
    (block,) = study.analyses["interpolate"].runs
    named = [str(kept.file) for kept in runs["acdc"].models if fnmatchcase(str(kept.file), str(block.file))]
    assert [name[18:22] for name in named] == [f"{epoch:04d}" for epoch in range(99, 1000, 100)]


def test_p2_g_is_read_both_ways() -> None:
    sizes = {}
    for key, recipe in recipes("small_dense").items():
        sizes[key] = sum(weight.numel() for weight in setup.without_weights(recipe, 1000).parameters())
    # torchvision's resnet50(width_per_group=32) has 12,381,864
    assert list(sizes.values()) == [25_557_032, 12_381_864, 6_917_640]
    assert [recipe.sparsity.method for recipe in recipes("small_dense").values()] == ["acdc", "dense", "dense"]


@pytest.mark.parametrize("spelling", ["epoch_length", "epoch_length.yaml", "recipes/studies/epoch_length.yaml"])
def test_a_shipped_study_is_found_from_anywhere(in_tmp: Path, spelling: str) -> None:
    assert shipped.find_study(spelling).name == "epoch_length.yaml"
    Path("epoch_length.yaml").touch()
    assert shipped.find_study("epoch_length.yaml") == Path("epoch_length.yaml")


def test_an_unknown_study_is_refused_with_the_nearest_and_all_there_are(in_tmp: Path) -> None:
    with pytest.raises(RecipeError) as error:
        shipped.find_study("epoch_lenght")
    assert str(error.value) == (
        "no study epoch_lenght: neither a file nor a shipped study; did you mean epoch_length? "
        f"(there are: {', '.join(NAMES)})"
    )


def test_the_comparison_trains_every_method_at_every_sparsity_for_the_same_epochs_and_seeds() -> None:
    study, by_key = load_study("methods_demo"), recipes("methods_demo")
    trained: dict[str, set[tuple[float | None, int]]] = {}
    for cell in study.cells():
        recipe = by_key[cell.key]
        name, sparsity = str(cell.axes["method"]), cell.axes["sparsity"]
        assert recipe.sparsity.method == name.partition(" ")[0]
        assert recipe.epochs == 8
        assert getattr(recipe.sparsity, "target", sparsity) == sparsity
        trained.setdefault(name, set()).add((None if name == "dense" else float(sparsity), recipe.seed))
    for method in methods():
        wanted = (None,) if method == "dense" else (0.9, 0.95, 0.98)
        assert trained[method] == {(sparsity, seed) for sparsity in wanted for seed in (0, 1, 2)}
