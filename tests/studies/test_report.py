"""The report of a small study, compared in content, and its page in a browser where there is one."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from command import Acdc
from made import Made, in_memory, study
from matplotlib.figure import Figure
from PIL import Image

from acdc_cli.recipe.kinds import measures_of
from acdc_cli.studies.report import charts, tables, write
from acdc_cli.studies.report.write import report
from acdc_cli.studies.results import of_study
from acdc_cli.studies.summary import Summary, summarise

TOPS = {("dense", 4): (0.90, 0.92), ("dense", 8): (0.80, 0.82), (0.9, 4): (0.60, 0.64), (0.9, 8): (0.84, 0.88)}
"""Top-1 of the two seeds after the last epoch."""
DONE = [
    Made(sparsity, epochs, seed, top1=top1, loss=0.1, entropy=0.2, flops=epochs * (100 if sparsity == "dense" else 40))
    for (sparsity, epochs), tops in TOPS.items()
    for seed, top1 in enumerate(tops)
]
GOING = Made(0.9, 16, 0, top1=0.99, done=False, ended=3)
WAITING = Made(0.9, 16, 1, done=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which two runs are missing, with its report."""
    made = study(tmp_path_factory.mktemp("studies") / "small", [*DONE, GOING, WAITING])
    report(str(made))
    return made


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty: drawing them is most of a report's seconds."""
    svg, png = write.svg(Figure()), write.png(Figure())
    monkeypatch.setattr(write, "svg", lambda figure: svg)
    monkeypatch.setattr(write, "png", lambda figure: png)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "report" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_of_last_epochs_has_means_deviations_and_the_number_of_runs(folder: Path) -> None:
    rows = {(row["series"], row["epochs"]): row for row in table(folder, "last_epoch")}
    assert list(rows) == [("dense", "4"), ("dense", "8"), ("90 %", "4"), ("90 %", "8"), ("90 %", "16")]
    cells = rows["90 %", "8"]
    assert float(cells["top-1 % mean"]) == pytest.approx(86)
    # of 84 and 88: sqrt((2² + 2²) / (2 - 1))
    assert float(cells["top-1 % std"]) == pytest.approx(8**0.5)
    assert (cells["n"], cells["n planned"], cells["training FLOPs"]) == ("2", "2", "320.0")
    assert float(cells["zeros % (pruned layers)"]) == pytest.approx(90)
    assert float(cells["zeros % (all)"]) == pytest.approx(45)


def test_sparse_models_are_held_against_the_dense_one_of_their_length_both_ways(folder: Path) -> None:
    rows = table(folder, "against_dense")
    assert [(row["series"], row["epochs"]) for row in rows] == [("90 %", "4"), ("90 %", "8")]
    # 62 to 91, 86 to 81
    assert [float(row["P - D, points"]) for row in rows] == pytest.approx([-29, 5])
    assert [float(row["100 (P - D) / D, %"]) for row in rows] == pytest.approx([-2900 / 91, 500 / 81])
    assert [float(row["D: dense top-1 %"]) for row in rows] == pytest.approx([91, 81])


def test_a_dense_model_of_another_width_is_no_baseline() -> None:
    wide, narrow = Made(0.9, 4, 0), Made("dense", 4, 0)
    runs = [in_memory(wide), replace(in_memory(narrow), recipe=in_memory(narrow).recipe | {"model": {"name": "small"}})]
    assert not tables.against_dense(summarise("small", runs)).rows
    assert len(tables.against_dense(summarise("small", [in_memory(wide), in_memory(narrow)])).rows) == 1


def test_the_best_length_of_each_sparsity_is_marked(folder: Path) -> None:
    best = {row["series"]: row["epochs"] for row in table(folder, "last_epoch") if row["best"]}
    assert best == {"dense": "4", "90 %": "8"}
    assert "| 90 % | **8** | 2 | **86.00 ± 2.83** |" in (folder / "report" / "report.md").read_text()


def test_the_pareto_front_is_marked(folder: Path) -> None:
    front = [(row["series"], row["epochs"]) for row in table(folder, "last_epoch") if row["Pareto front"]]
    # (160, 62), (320, 86), (400, 91); (800, 81) is beaten
    assert front == [("dense", "4"), ("90 %", "4"), ("90 %", "8")]


def test_the_lengths_beside_points_of_the_front_and_below_it_can_be_told_apart(tmp_path: Path) -> None:
    close = [Made("dense", 16, 0, top1=0.90, flops=1000), Made(0.9, 16, 0, top1=0.895, flops=1040)]
    far = [Made("dense", 8, 0, top1=0.5, flops=400), Made(0.9, 32, 0, top1=0.6, flops=4000)]
    drawn = charts.pareto(summarise("s", of_study(study(tmp_path / "s", [*close, *far]))))
    assert drawn is not None
    drawn.draw_without_rendering()
    texts = [text for text in drawn.axes[0].texts if text.get_text() == "16"]
    first, second = [text.get_window_extent() for text in texts]
    assert not first.overlaps(second)


def test_a_group_without_a_run_that_is_done_has_no_numbers(folder: Path) -> None:
    (row,) = [row for row in table(folder, "last_epoch") if row["epochs"] == "16"]
    assert (row["n"], row["n planned"], row["top-1 % mean"], row["top-1 % std"]) == ("0", "2", "", "")


def test_what_is_missing_is_said(folder: Path) -> None:
    said = [(row["run"], row["state"]) for row in table(folder, "missing")]
    assert said == [(GOING.key, "waiting, 3 of 16 epochs"), (WAITING.key, "waiting")]
    assert "resnet8 on demo, 8 of 10 runs done" in (folder / "report" / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_speed_and_size_have_a_table_where_runs_were_timed(tmp_path: Path) -> None:
    made = study(tmp_path / "s", DONE[:2])
    assert "speed" not in {path.stem for path in report(str(made)).folder.iterdir()}
    row = {
        "variant": "sparse",
        "engine": "mnn",
        "batch": 1,
        "threads": 2,
        "latency_ms": 12.345,
        "file_bytes": 2_500_000,
    }
    rows = [row | {"speedup_over_own_dense": 2.04}, row | {"variant": "dense", "speedup_over_own_dense": None}]
    (made / "runs" / DONE[0].key / "bench.json").write_text(json.dumps({"results": {"rows": rows}}))
    report(str(made))
    sparse, dense = table(made, "speed")
    assert (sparse["run"], sparse["engine"], sparse["latency (ms)"]) == (DONE[0].key, "mnn", "12.345")
    assert (sparse["× dense"], dense["× dense"], sparse["file (MB)"]) == ("2.04", "", "2.5")


@pytest.mark.usefixtures("undrawn")
def test_last_and_best_epoch_have_tables_of_their_own(tmp_path: Path) -> None:
    made = study(tmp_path / "s", [Made("dense", 2, seed) for seed in (0, 1)])
    for run in (made / "runs").iterdir():
        # as Made has it: half of 0.9, then 0.9; the other way round, the first epoch is the best
        first, last = (run / "metrics.jsonl").read_text().splitlines()
        swapped = first.replace('"top1": 0.45', '"top1": 0.9'), last.replace('"top1": 0.9', '"top1": 0.45')
        (run / "metrics.jsonl").write_text("\n".join(swapped) + "\n")
    report(str(made))
    (last_epoch,), (best_epoch,) = table(made, "last_epoch"), table(made, "best_epoch")
    assert [float(row["top-1 % mean"]) for row in (last_epoch, best_epoch)] == [45, 90]
    assert [float(row["training cross entropy mean"]) for row in (last_epoch, best_epoch)] == [0.1, 0.2]
    assert best_epoch["best epochs"] == "1, 1"
    (run_row, _) = table(made, "runs")
    assert (run_row["last epoch: top-1 %"], run_row["best epoch: top-1 %"]) == ("45.0", "90.0")


def test_a_loss_that_is_not_finite_is_no_number_of_a_run() -> None:
    (row,) = tables.runs(summarise("s", [in_memory(Made("dense", 2, 0, loss=None))])).rows
    assert [cell.value for cell in row if cell.text == "not finite"] == ["", ""]


@pytest.mark.usefixtures("undrawn")
def test_the_command_names_the_page_and_what_is_missing_and_makes_the_same_bytes_of_the_same_runs(
    acdc: Acdc, folder: Path, tmp_path: Path
) -> None:
    files = []
    for home in (tmp_path / "one", tmp_path / "two"):
        again = home / "small"
        shutil.copytree(folder, again, ignore=shutil.ignore_patterns("report"))
        done = acdc("report", again)
        assert done.exit_code == 0
        assert done.stdout.strip() == str(again / "report" / "index.html")
        assert f"missing: {GOING.key}" in done.stderr
        files.append({path.name: path.read_bytes() for path in (again / "report").iterdir()})
    assert files[0].keys() == {path.name for path in (folder / "report").iterdir()} - BROWSED
    assert files[0] == files[1]


def test_the_same_runs_are_drawn_in_the_same_bytes(folder: Path) -> None:
    figure = charts.pareto(summary(folder))
    assert figure is not None
    assert write.svg(figure) == (folder / "report" / "pareto.svg").read_text()
    assert write.png(figure) == (folder / "report" / "pareto.png").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_once_all_is_done_nothing_is_said_to_be_missing_any_more(tmp_path: Path) -> None:
    made = study(tmp_path / "s", [DONE[0], Made("dense", 4, 1, done=False)])
    report(str(made))
    assert (made / "report" / "missing.csv").exists()
    DONE[1].write(made / "runs" / DONE[1].key)
    assert report(str(made)).missing == []
    assert not (made / "report" / "missing.csv").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_error_of_a_run_that_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acdc_cli.studies.owner import Owner
    from acdc_cli.studies.run_queue import RunQueue

    made = study(tmp_path / "s", [DONE[0], WAITING])
    queue, owner = RunQueue(made / "ledger.sqlite"), Owner.this_process()
    for _ in range(2):
        assert queue.claim(owner) is not None
        queue.fail(WAITING.key, owner, "exit code 2: error:\n  <no> memory")
    report(str(made))
    assert [(row["state"], row["error"]) for row in table(made, "missing")] == [
        ("failed", "exit code 2: error: <no> memory")
    ]
    assert "&lt;no&gt; memory" in (made / "report" / "index.html").read_text()


class Page(HTMLParser):
    """Ids and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]


def test_the_page_needs_nothing_beside_itself(folder: Path) -> None:
    text = (folder / "report" / "index.html").read_text()
    page = Page(text)
    beside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert beside == [f"../runs/{made.key}/resolved.yaml" for made in (*DONE, GOING)]
    assert all((folder / "report" / link).is_file() for link in beside)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_every_id_of_the_page_is_unique_and_every_link_within_it_leads_somewhere(folder: Path) -> None:
    page = Page((folder / "report" / "index.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_page_holds_each_runs_recipe(folder: Path) -> None:
    text = (folder / "report" / "index.html").read_text()
    assert text.count("<details") == len(DONE) + 1
    assert (folder / "runs" / DONE[0].key / "resolved.yaml").read_text() in text


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_lies_elsewhere_links_to_no_directory(folder: Path, tmp_path: Path) -> None:
    report(str(folder), tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []


def summary(folder: Path) -> Summary:
    return summarise("small", of_study(folder))


def test_the_figure_has_one_line_a_sparsity_dashed_for_dense_and_its_best_marked_larger(folder: Path) -> None:
    for axes, shown in zip(
        charts.panels(summary(folder)).axes, charts.quantities(measures_of("multiclass")), strict=True
    ):
        bars = {bar.lines[0].get_color(): bar.lines[0] for bar in axes.containers}
        dense, sparse = bars["#1a1a1b"], bars["#0072b2"]
        assert (dense.get_linestyle(), sparse.get_linestyle()) == ("--", "-")
        assert list(sparse.get_xdata()) == [4, 8]
        large = [line for line in axes.get_lines() if line.get_markersize() == 12]
        # by the accuracy, in every panel
        assert [(line.get_color(), line.get_xdata()[0]) for line in large] == [("#1a1a1b", 4), ("#0072b2", 8)]
        assert axes.get_xscale() == "log"
        level = [line for line in axes.get_lines() if line.get_linestyle() == "--" and line is not dense]
        assert len(level) == (0 if shown.key == "top1" else 1)


def test_error_bars_are_the_sample_deviation(folder: Path) -> None:
    panel = charts.panel(summary(folder), measures_of("multiclass").headline).axes[0]
    (bars,) = [bar for bar in panel.containers if bar.lines[0].get_color() == "#0072b2"]
    _, eight = bars.lines[2][0].get_segments()
    assert eight[:, 1] == pytest.approx([86 - 8**0.5, 86 + 8**0.5])


def test_markers_and_lines_differ_without_colours() -> None:
    assert len(set(map(str, charts.LINES))) == len(charts.LINES)
    assert len(set(charts.MARKERS)) == len(charts.MARKERS)


def test_curves_hold_every_run_that_has_ended_an_epoch(folder: Path) -> None:
    (_, sparse) = summary(folder).series
    figure = charts.curves(sparse, "epochs")
    assert figure is not None
    assert [len(axes.get_lines()) for axes in figure.axes[:3]] == [2, 2, 1]
    assert list(figure.axes[2].get_lines()[0].get_xdata()) == [1, 2, 3]


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_costs_has_no_figure_of_them(tmp_path: Path) -> None:
    made = study(tmp_path / "s", [Made("dense", 4, 0, flops=None)])
    report(str(made))
    assert not (made / "report" / "pareto.svg").exists()
    assert 'href="#cost"' not in (made / "report" / "index.html").read_text()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian's package chromium)")


class Shown(NamedTuple):
    dom: str
    console: list[str]


def shown(page: Path, home: Path, *options: str, fragment: str = "") -> Shown:
    """The page's elements after its scripts have run, and what the browser's console said."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--user-data-dir={home}", "--allow-file-access-from-files", *options]
    done = subprocess.run(
        [*map(str, command), "--dump-dom", f"{page.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Shown(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def with_script(folder: Path, name: str, script: str) -> Path:
    """The page with a script that looks at it; what that writes into #seen is what it saw."""
    text = (folder / "report" / "index.html").read_text()
    file = folder / "report" / name
    file.write_text(text.replace("</body>", f'<pre id="seen"></pre><script>{script}</script></body>'))
    return file


def seen(dom: str) -> list[str]:
    match = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert match
    return match[1].split("\n")


LOOK = """
const say = (...words) => document.getElementById("seen").append(words.join(" ") + "\\n");
"""
SORT = """
const head = document.querySelectorAll("table.last_epoch thead th")[3], button = head.querySelector("button");
const rows = () => [...document.querySelectorAll("table.last_epoch tbody tr")];
["0.5", "", "-1.5", "10", "0.12"].forEach((key, i) => rows()[i].cells[3].dataset.key = key);
for (let click = 0; click < 2; click++) {
  button.focus();
  document.activeElement.click();
  say(head.getAttribute("aria-sort"), rows().map(row => row.cells[3].dataset.key || "none").join(" "));
}
"""


SHADES = """
const shade = colour => Math.max(...colour.match(/\\d+/g).slice(0, 3));
say(shade(getComputedStyle(document.body).backgroundColor), shade(getComputedStyle(document.body).color));
for (const text of document.querySelectorAll("svg text")) say("ink", shade(getComputedStyle(text).fill));
for (const svg of document.querySelectorAll("svg"))
  say("paper", shade(getComputedStyle(svg.querySelector("[id$=patch_1] path")).fill));
"""
DARK, LIGHT = (f"--blink-settings=preferredColorScheme={scheme}" for scheme in (0, 1))
BROWSED = {"bad.html", "inner.html", "phone.html", "sort.html", "shades.html"}
"""Pages that tests write into the report of `folder`."""


@pytest.fixture(scope="module")
def dark(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The page by night, opened at its second recipe; its tables are sorted, and it tells its shades."""
    page = with_script(folder, "sort.html", LOOK + SORT + SHADES)
    return shown(page, tmp_path_factory.mktemp("browser"), DARK, fragment="#recipe-2")


@needs_chromium
def test_the_browser_has_nothing_to_complain_about(dark: Shown, folder: Path, tmp_path: Path) -> None:
    assert dark.console == []
    complaint = with_script(folder, "bad.html", "console.error('no')")
    assert len(shown(complaint, tmp_path).console) == 1


@needs_chromium
def test_tables_are_sorted_by_their_heads_and_say_so(dark: Shown) -> None:
    # by number; what has none comes last
    assert seen(dark.dom)[:2] == ["ascending -1.5 0.12 0.5 10 none", "descending 10 0.5 0.12 -1.5 none"]


@needs_chromium
def test_a_runs_link_opens_its_recipe(dark: Shown) -> None:
    assert [bool(mark) for mark in re.findall(r'<details id="recipe-\d+"( open="")?>', dark.dom)].index(True) == 1


@pytest.mark.slow
@needs_chromium
def test_a_phone_need_not_scroll_sideways(folder: Path, tmp_path: Path) -> None:
    script = "const root = document.documentElement; say(innerWidth, root.scrollWidth)"
    with_script(
        folder, "inner.html", LOOK + script + '\nparent.postMessage(document.getElementById("seen").textContent, "*")'
    )
    outer = folder / "report" / "phone.html"
    # the browser's own window does not get as narrow as a phone
    outer.write_text(
        '<!doctype html><pre id="seen"></pre><script>addEventListener("message", event => '
        'document.getElementById("seen").textContent = event.data)</script>'
        '<iframe src="inner.html" style="width: 390px; height: 800px; border: 0"></iframe>'
    )
    assert seen(shown(outer, tmp_path).dom)[0] == "390 390"


def assert_shades(told: list[str], light: bool) -> None:
    """Page and figures have one background and one ink."""
    first, *rest = filter(None, told)
    background, ink = map(int, first.split())
    assert (background > 200, ink < 100) == (light, light)
    inks = {int(line.split()[1]) for line in rest if line.startswith("ink")}
    papers = {int(line.split()[1]) for line in rest if line.startswith("paper")}
    assert (inks, papers) == ({ink}, {background})


@needs_chromium
def test_page_and_figures_are_dark_as_is_preferred(dark: Shown) -> None:
    assert_shades(seen(dark.dom)[2:], light=False)


@needs_chromium
@pytest.mark.slow
def test_page_and_figures_are_light_as_is_preferred(folder: Path, tmp_path: Path) -> None:
    assert_shades(seen(shown(with_script(folder, "shades.html", LOOK + SHADES), tmp_path, LIGHT).dom), light=True)


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [500, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_page_can_be_looked_at(folder: Path, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    shown(folder / "report" / "index.html", tmp_path, f"--window-size={width},2000", f"--screenshot={picture}")
    with Image.open(picture) as image:
        assert image.size == (width, 2000)
        # neither blank nor of one colour: the lines of the figure are in it
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0x00, 0x72, 0xB2) in colours


def test_along_the_sparsity_a_dense_model_has_a_line_and_no_place(tmp_path: Path) -> None:
    dense = replace(in_memory(Made("dense", 4, 0, top1=0.95)), axes={"method": "dense", "sparsity": 0.9, "seed": 0})
    sparse = [
        replace(in_memory(Made(share, 4, 0, top1=1 - share / 10)), axes={"method": "gmp", "sparsity": share, "seed": 0})
        for share in (0.9, 0.95)
    ]
    summary = summarise("s", [*sparse, dense])
    rows = {row[0].text: row[1].text for row in tables.last_epoch(summary).rows}
    assert rows["dense"] == "–"
    axes = charts.panel(summary, measures_of("multiclass").headline).axes[0]
    level = [line.get_ydata() for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
    assert [list(map(float, ys)) for ys in level] == [[pytest.approx(95)] * 2]
    places = {float(x) for line in axes.get_lines() for x in line.get_xdata() if list(line.get_xdata()) != [0, 1]}
    assert places == {0.9, 0.95}
    costs = charts.pareto(summary)
    assert costs is not None
    assert sorted(text.get_text() for text in costs.axes[0].texts) == ["", "0.9", "0.95"]


@pytest.mark.usefixtures("undrawn")
def test_wandb_gets_the_report_as_it_gets_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline = [replace(each, overrides=("track.wandb=offline", "track.project=mine")) for each in DONE]
    made = study(tmp_path / "mirrored", offline)
    report(str(made))
    assert "W&B" not in capsys.readouterr().err
    identity = (made / "wandb-id").read_text()
    (file,) = made.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (run,) = [row["run"] for row in rows if row["type"] == "run"]
    assert (run["run_id"], run["project"], run["run_group"]) == (identity, "mine", "mirrored")
    (artifact,) = [row["artifact"] for row in rows if row.get("artifact", {}).get("type") == "report"]
    assert artifact["name"] == "mirrored-report"
    sent = {each["path"] for each in artifact["manifest"]["contents"]}
    assert sent == {each.name for each in (made / "report").iterdir()}
    drawn = {each.stem.rpartition("_")[0] for each in made.glob("wandb/offline-run-*/files/media/images/*.png")}
    assert {"panels_0", "pareto_0"} <= drawn
    (path, *_) = sorted(made.glob("wandb/offline-run-*/files/media/table/last_epoch_*.json"))
    columns = json.loads(path.read_text())
    (expected,) = [each for each in write._tables(summarise("mirrored", of_study(made))) if each.name == "last_epoch"]
    assert columns["columns"] == [column.name for column in expected.columns]
    assert columns["data"] == [[cell.text for cell in row] for row in expected.rows]


@pytest.mark.usefixtures("undrawn")
def test_a_study_that_does_not_use_wandb_gives_it_no_report(tmp_path: Path) -> None:
    made = study(tmp_path / "alone", DONE)
    report(str(made))
    assert not (made / "wandb").exists()
    assert not (made / "wandb-id").exists()
