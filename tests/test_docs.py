"""The pages: links lead somewhere, commands would run, examples do what they say, and the README stays short."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docs_commands
import docs_examples
import docs_pages
import pytest
from docs_pages import PAGES, ROOT, Command, Link
from docs_tools import Wrong

README = ROOT / "README.md"
COMMANDS = [command for page in PAGES for command in docs_pages.commands(page)]
LINKS = [link for page in PAGES for link in docs_pages.links(page)]
CODE = re.compile(r"`([^`]+)`")
NUMBERS = re.compile(r" *\d+(?:\.\d+)?")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a page of its own, beside nothing."""
    monkeypatch.setattr(docs_pages, "ROOT", tmp_path)

    def write(text: str) -> Path:
        (tmp_path / "page.md").write_text(text)
        return tmp_path / "page.md"

    return write


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS, ids=lambda link: f"{link}-{link.target}")
def test_a_link_leads_somewhere(link: Link) -> None:
    assert docs_pages.dead(link) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# A title\n[here](#a-title), [there](page.md#a-title), [out](https://example.com/x), `[no](link)`", None),
        ("```\n[no](link)\n```\n# Why not `so`? It is\n[x](#why-not-so-it-is)", None),
        ("\n\n[x](nothing.md)", "page.md:3: there is no nothing.md"),
        ("![picture](docs/nothing.png)", "page.md:1: there is no docs/nothing.png"),
        ("# A title\n[x](#another)", "page.md:2: page.md has no heading #another"),
        ("[x](../../../etc/passwd)", "page.md:1: there is no ../../../etc/passwd"),
    ],
)
def test_a_dead_link_is_found(page: Callable[[str], Path], text: str, said: str | None) -> None:
    found = [wrong for link in docs_pages.links(page(text)) if (wrong := docs_pages.dead(link))]
    assert found == ([said] if said else [])


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of what Ray and MLflow import
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command}-{command.text[:60]}")
def test_a_command_would_run(command: Command) -> None:
    try:
        docs_commands.check(command.text)
    except Wrong as error:
        pytest.fail(f"{command}: {command.text}: {error}", pytrace=False)


def test_commands_are_read_as_a_shell_would(page: Callable[[str], Path]) -> None:
    found = docs_pages.commands(page("```sh\n# a comment\nray up \\\n    cluster.yaml   # why\n\nexport A=1\n```\n`ray\nup x` `ray`\n"))
    assert [(command.line, command.text) for command in found] == [(3, "ray up cluster.yaml"), (6, "export A=1"), (8, "ray up x")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("python pipelines/train.py demo --optim.lrr 1e-3", "did you mean 'optim.lr'"),
        ("python pipelines/train.py demo --optim.lr fast", "takes float, not 'fast'"),
        ("python pipelines/train.py demo --trainable TokenPromt", "recipe key 'trainable' takes"),
        ("python pipelines/train.py demmo", "no recipe 'demmo'"),
        ("python pipelines/train.py demo --data.name cifar11", "no data set 'cifar11'"),
        ("python pipelines/train.py demo --model tiny-vit9", "no model 'tiny-vit9'"),
        ("python pipelines/train.py", "required: recipe"),
        ("python pipelines/train.py demo --fresher", "'--fresher' is not an option"),
        (".venv/bin/python pipelines/sweep.py epsilom", "no space 'epsilom'"),
        ("pipelines/sweep.py epsilon --protocol dem", "no protocol 'dem'"),
        ("python pipelines/sweep.py --recipe dem", "no recipe 'dem'"),
        ("python pipelines/evaluate.py CHECKPOINT --attack", "unrecognized arguments|ambiguous|expected"),
        ("python pipelines/evaluate.py CHECKPOINT --attacks apgd-ce-21", "no attack 'apgd-ce-21'"),
        ("python pipelines/evaluate.py tpt[view=16]:CHECKPOINT", "did you mean 'views'"),
        ("python pipelines/evaluate.py ensemble:A,tiny-vit9", "no model 'tiny-vit9'"),
        ("python pipelines/evaluate.py open_clip:ViT-B-32/openais", "no model"),
        ("python pipelines/prepare.py FOLDER --nam x --sets", "unrecognized arguments: --sets"),
        ("python pipelines/moments.py CHECKPOINT --data labeled", "no data set 'labeled'"),
        ("robustclip retrieve CHECKPOINT --data labeled --captions x.json", "no data set 'labeled'"),
        ("robustclip retrieve CHECKPOINT --attacks apgd-ce-21", "no attack 'apgd-ce-21'"),
        ("python pipelines/words.py BERT_FOLDER --protocol x", "no protocol 'x'"),
        ("python pipelines/report.py --compare CHECKPOINT", "expected 2 arguments"),
        ("robustclip swep", "no command 'swep'"),
        ("robustclip sweep epsilom", "no space 'epsilom'"),
        (".venv/bin/robustclip train demo --optim.lrr 1e-3", "did you mean 'optim.lr'"),
        ("python -m robustclip evaluate", "required: MODEL"),
        ("ray job submit -- robustclip sweep --protocl demo", "is not|unrecognized|unknown"),
        ("python pipelines/nothing.py", "there is no pipelines/nothing.py"),
        ("python benchmarks/nothing.py --images 4", "there is no benchmarks/nothing.py"),
        ("python -m robustclap", "no such module"),
        ("pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
        ("pytest -m sloow", "no test is selected by sloow"),
        ("pytest -k 'not (docs or e)'", "no test is selected"),
        ("pytest --fasst", "unrecognized arguments: --fasst"),
        ("ray upp cluster.yaml", "there is no ray upp"),
        ("ray up nowhere.yaml", "there is no nowhere.yaml"),
        ("ray dashboard cluster.yaml --prot 1", "No such option"),
        ("ray job submit --working-dir . -- python pipelines/sweep.py --protocl demo", "is not|unrecognized|unknown"),
        ("mlflow server --hostt 127.0.0.1", "No such option"),
        ("kubectl apply -f clusters/nothing.yaml", "there is no clusters/nothing.yaml"),
        ("kubectl logs -f job/other", "makes robustclip-sweep"),
        ("uv synch", "invalid choice: 'synch'"),
        ("source .venv/activate", "only .venv/bin/activate"),
        ("true && { cd x || rm -rf y; }", "'true': nobody checks such a command"),
    ],
)
def test_a_command_that_would_not_run_is_found(text: str, said: str) -> None:
    with pytest.raises(Wrong, match=said.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
        docs_commands.check(text)


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_is_read_in_two_minutes() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert "It is a rendered world, never a benchmark of real CLIP" in text
    assert re.search(r"Nothing here was run on a\s+GPU, on several machines, on a cloud, or on real CLIP weights", text)


def column_of(heading: str) -> list[list[str]]:
    """Return the code spans of every cell of the table under a heading of the README, row by row."""
    section = README.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [[" ".join(CODE.findall(cell)) for cell in row] for row in rows]


def test_the_table_of_methods_has_them_all() -> None:
    from robustclip.defenses import DEFENSES, LEAF, PAIRED
    from robustclip.test_time import TEST_TIME
    from robustclip.training.recipes import RECIPES

    rows = column_of("Methods")
    assert sorted(" ".join(row[0] for row in rows).split()) == sorted([*(kind.__name__ for kind in (*DEFENSES, *PAIRED, LEAF)), *TEST_TIME])
    for defences, *_, recipes in rows:
        for recipe in recipes.split():
            if recipe == "objective_mix":
                assert (ROOT / "tune_spaces" / f"{recipe}.py").is_file()
            elif ":" in recipe:
                docs_commands.check(f"python pipelines/evaluate.py {recipe}")
            else:
                assert type(RECIPES[recipe].config.defense).__name__ in defences


def test_the_table_of_attacks_and_protocols_has_them() -> None:
    from robustclip.attacks.catalogue import KNOWN
    from robustclip.evaluation.protocols import PROTOCOLS

    names = " ".join(row[0] for row in column_of("Attacks and protocols")).split()
    assert set(PROTOCOLS) <= set(names)
    for name in set(names) - set(PROTOCOLS):
        assert any(known.startswith(name.removesuffix("...")) for known in KNOWN), name


@pytest.mark.timeout(120)
def test_the_five_lines_of_python_print_what_stands_below_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = (block.text for block in docs_pages.blocks(README) if block.heading == "In Python")
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    assert len(code.split("\n")) - code.count("\n\n") - 1 == 5  # lines that are not blank
    mine, theirs = said.getvalue().splitlines(), printed.splitlines()
    assert [NUMBERS.sub("#", line) for line in mine] == [NUMBERS.sub("#", line) for line in theirs]
    # Another processor rounds otherwise, and an image on the edge may fall to the other side.
    means = [[float(NUMBERS.findall(line.partition(" %")[0])[-1]) for line in lines[:-1]] for lines in (mine, theirs)]
    assert means[0] == pytest.approx(means[1], abs=100 * 2 / 60)
    assert (tmp_path / "curve.png").stat().st_size > 0


# --- docs/extend.md ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return what every example takes and how it fared, in a copy of the package to which all of them are applied."""
    copy = tmp_path_factory.mktemp("extended")
    docs_examples.copy_of_the_package(copy)
    taken = docs_examples.apply_all(copy)
    run = [sys.executable, docs_examples.__file__, str(copy)]
    done = subprocess.run(run, cwd=copy, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return taken, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("extended")  # one copy for all
@pytest.mark.parametrize("heading", docs_examples.EXAMPLES)
def test_an_example_does_what_the_page_says(heading: str, extended: tuple[dict[str, tuple[int, int]], dict[str, str]]) -> None:
    assert extended[1][heading] == "ok", extended[1][heading]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("extended")
def test_every_example_of_the_page_is_tried(extended: tuple[dict[str, tuple[int, int]], dict[str, str]]) -> None:
    taken, outcomes = extended
    assert {*taken, "A data set"} == outcomes.keys()
    assert "A data set" not in taken  # no line of code


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("extended")
def test_a_defence_with_its_recipe_is_as_short_as_the_pages_say(extended: tuple[dict[str, tuple[int, int]], dict[str, str]]) -> None:
    lines, files = extended[0]["A defence"]
    assert lines <= 25
    numbers = ("no", "one", "two", "three", "four")
    assert f"That is {lines} lines that are not blank, in {numbers[files]} files." in " ".join(docs_examples.PAGE.read_text().split())
    assert f"a defence is {lines} lines" in README.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`new.py`:\n```python\nx = 1\n```\n", None),
        ("No file:\n```python\nx = 1\n```\n", "does not name its file"),
        ("`old.py`:\n```python\nx = 1\n```\n", "is there already"),
        ("```diff\n--- old.py\n b = 2\n+c = 3\n```\n", None),
        ("```diff\n--- old.py\n d = 2\n+c = 3\n```\n", "0 places in old.py"),
    ],
)
def test_an_example_that_does_not_fit_is_found(page: Callable[[str], Path], tmp_path: Path, text: str, said: str | None) -> None:
    (tmp_path / "old.py").write_text("a = 1\nb = 2\n")
    (block,) = docs_pages.blocks(page(text))
    if said is None:
        assert docs_examples.apply(block, tmp_path) == 1
        assert {(tmp_path / "old.py").read_text(), "x = 1\n"} & {"a = 1\nb = 2\nc = 3\n", "x = 1\n"}
    else:
        with pytest.raises(AssertionError, match=said):
            docs_examples.apply(block, tmp_path)


# --- docs/design.md and docs/honest.md --------------------------------------------------------------------------------


def test_the_layout_names_files_that_are_there() -> None:
    layout = (ROOT / "docs" / "design.md").read_text().partition("Room by room:")[2]
    rooms = re.findall(r"^- \*\*(\w+)\*\*: (.*(?:\n  .*)*)", layout, re.MULTILINE)
    named = [ROOT / "robustclip" / room / file for room, said in rooms for file in re.findall(r"`(\w+\.py|\w+/)`", said)]
    assert {room for room, _ in rooms} == {path.parent.name for path in (ROOT / "robustclip").glob("*/*.py")}
    assert [str(file.relative_to(ROOT)) for file in named if not file.exists()] == []


def test_the_checks_on_the_page_are_those_of_the_code() -> None:
    from robustclip.evaluation.checks import CHECKS

    rows = re.findall(r"^\| (G?\d+) \| ([^|]+) \| [^|]+ \| (\w+) \|", (ROOT / "docs" / "honest.md").read_text(), re.MULTILINE)
    titles = {"G2": "prompts_of", "G8": "names"}
    assert [(number, level) for number, _, level in rows] == [(number, level) for number, (_, level, _) in CHECKS.items()]
    assert [title for number, title, _ in rows if number not in titles] == [
        title for number, (title, _, _) in CHECKS.items() if number not in titles
    ]
