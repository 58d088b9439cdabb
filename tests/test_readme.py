"""What README and docs say is so: commands are typed, snippets run, links lead somewhere.

Fits are dry runs, so nothing here trains except one slow test; models are untrained and tiny. A
block under `<!-- not run: reason -->` is checked for its syntax only.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from varlit.checkpoints.official import official_state, save_official
from varlit.cli import demo, quickstart, reconstruct
from varlit.cli import main as command_line
from varlit.cli.config.recipes import option_value, read_yaml, run_name
from varlit.cli.config.trust import ALLOW_IMPORT
from varlit.cli.doctor import main as doctor
from varlit.cli.editing import edit
from varlit.cli.files import cache as cache_verb
from varlit.cli.files import convert
from varlit.cli.results import evaluate, sweep
from varlit.cli.sampling import sample
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.training.checkpoint_files import SealedFiles
from varlit.training.tokenizer import TokenizerModule
from varlit.training.var import VARModule

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
MODULES = {"tokenizer": TokenizerModule, "var": VARModule}
VERB_MODULES = (convert, demo, doctor, edit, evaluate, quickstart, reconstruct, sample, sweep)
VERB_PARSERS = [module.build_parser() for module in VERB_MODULES]
VERB_PARSERS += [parser() for parser, _ in cache_verb.VERBS.values()]
# These take minutes, or the weights of Inception, or serve until Ctrl-C.
PARSED_ONLY = {"demo": demo, "evaluate": evaluate, "quickstart": quickstart}
MAX_README_LINES, MAX_NOT_RUN = 230, 5
TOY_TOKENIZER = TokenizerConfig(32, (1, 1, 1, 1), 1, 0.0, 128, 16, (1, 2, 3, 4))
TOY_OFFICIAL = TokenizerConfig(32, (1, 1, 1, 1, 1), 1, 0.0, 64, 8)
SIDES_512_PX = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
TOY_CLASSES = {"demo/var": "0123456789", "var-digits": "0123456789", "photos-var": ("cats", "dogs")}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    is_run: bool

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    blocks, lines = [], page.read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        text = "\n".join(lines[start + 1 : end]) + "\n"
        is_run = not (start and re.fullmatch(r"<!-- not run: .+ -->", lines[start - 1]))
        blocks.append(Block(page, start + 1, lines[start].removeprefix("```"), text, is_run))
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without the environment variables set in front of it."""
    text = re.sub(r"^[A-Z_]+=\S* (?=make|varlit)", "", block.text, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def make_runs(*words: str) -> list[list[str]]:
    """What a make command would run, by make's own account."""
    # Under `make test ARGS=...` a child make would inherit those settings.
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GPUS", "CONF", "NAME", "DATA", "ARGS", "SEED"}
    environment = {key: value for key, value in os.environ.items() if key not in inherited}
    command = ["make", "-n", "-o", ".venv/.ready", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith(".venv/")]


def varlit_commands(block: Block) -> Iterator[list[str]]:
    """The words after `varlit` of all that a block runs; anything unknown is refused."""
    for words in commands(block):
        if words[0] == "make":
            runs = make_runs(*words[1:])
            assert runs or words[1] == "setup", f"{block.name}: {words} runs nothing"
            known = ("varlit", "python", "ruff", "mypy", "tensorboard")
            assert all(Path(run[0]).name in known for run in runs), runs
            yield from (run[1:] for run in runs if Path(run[0]).name == "varlit")
        elif words[0] == "varlit":
            yield words[1:]
        elif words[0] == "export":
            assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words[1:]), words
        else:
            assert words == ["source", ".venv/bin/activate"], f"{block.name}: {words}"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with photos and the runs that the pages speak of, untrained."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    tokenizer, shape = VQVAE(TOY_TOKENIZER), VARConfig(depth=1, width=64)
    save_tokenizer(tokenizer, folder / "runs/demo/tokenizer")
    for name, classes in TOY_CLASSES.items():
        var = VAR(shape, TOY_TOKENIZER, len(classes))
        save_var(var, folder / "runs/demo/tokenizer", folder / "runs" / name, tuple(classes))
    write_official_toys(folder)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (300, 280, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name / "0.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def write_official_toys(folder: Path) -> None:
    """Small networks in files of the official layout and names, and what converting them leaves."""
    tokenizer, wide = VQVAE(TOY_OFFICIAL), replace(TOY_OFFICIAL, scales=SIDES_512_PX)
    save_official(tokenizer, folder / "vae_ch160v4096z32.pth")
    save_tokenizer(tokenizer, folder / "runs/tokenizer")
    d16 = VAR(VARConfig(depth=1), TOY_OFFICIAL, 1000)
    d36 = VAR(VARConfig(depth=1, shared_adaln=True), wide, 1000)
    for name, var in (("d16", d16), ("d36", d36)):
        save_official(var, folder / f"var_{name}.pth")
        save_var(var, folder / "runs/tokenizer", folder / "runs" / name)
    parts = {"var_wo_ddp": official_state(d16), "vae_local": official_state(tokenizer)}
    torch.save({"epoch": 1, "iter": 0, "trainer": parts}, folder / "ar-ckpt-last.pth")


def run(*words: str) -> str:
    """Type a varlit command; return what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.main(list(words))
    # Doctor's 1 is about this machine, not about the command.
    assert code == 0 or (words[0] == "doctor" and code == 1), f"{words}: {err.getvalue()}"
    return out.getvalue()


def check(words: list[str]) -> None:
    """Run a command if it is cheap, else all of it that comes before the work."""
    if words[0] in PARSED_ONLY:
        args = PARSED_ONLY[words[0]].build_parser().parse_args(words[1:])
        if words[0] == "evaluate":
            evaluate.config_of(args)  # refuses what the command itself would refuse first
    elif "--audit" in words:
        doctor.build_parser().parse_args(words[1:])  # no network in tests
    elif words[:2] == ["var", "sweep"]:
        args = sweep.build_parser().parse_args(words[2:])
        for point in sweep._points(args):
            evaluate.config_of(args, **point)
    elif words[0] == "cache":
        if not Path("runs/tok").exists():
            save_tokenizer(VQVAE(TOY_TOKENIZER), Path("runs/tok"))
            run(*["tokenizer", "predict", "-c", "digits", "--name", "tok", "--gpus", "0"])
        run(*words)
    elif words[0] not in MODULES:
        # One image of each class shows that the command works.
        run(*words, *(["--per_class", "1"] if words[0] == "sample" else []))
    elif len(words) > 1:
        stop = [] if {"--dry_run", "--print_config"} & set(words) else ["--dry_run"]
        with contextlib.nullcontext() if words[1] == "fit" else pretended_run(*words):
            run(*words, *stop)


@contextlib.contextmanager
def pretended_run(stage: str, verb: str, *words: str) -> Iterator[None]:
    """Let a trained run be there, and check that its module can do what it is asked for.

    It goes again: `varlit info` shows the run of a name, if there is one, and not its recipe.
    """
    step = "validation_step" if verb == "validate" else f"{verb}_step"
    module = MODULES[stage]
    assert getattr(module, step) is not getattr(module.__mro__[2], step), f"{module} has no {step}"
    folder = Path(option_value(list(words), "--root") or "runs") / run_name(stage, list(words))
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    SealedFiles().save_checkpoint({"hyper_parameters": {}}, folder / "checkpoints/last.ckpt")
    (folder / "fit.yaml").write_text(run(stage, "fit", "-c", "digits", "--print_config"))
    yield
    (folder / "fit.yaml").unlink()
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the official code builds no model")  # as small as ours
@pytest.mark.parametrize("block", [pytest.param(b, id=b.name) for b in BASH if b.is_run])
def test_every_command_can_be_typed(block: Block, toy: Path) -> None:
    for words in varlit_commands(block):
        check(words)


def test_every_bash_block_is_bash() -> None:
    for block in BASH:
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.name}: {done.stderr}"


@pytest.mark.parametrize("block", PYTHON, ids=lambda b: b.name)
def test_every_snippet_runs_and_prints_what_it_says(block: Block, toy: Path) -> None:
    code = compile(block.text, block.name, "exec")
    if not block.is_run:
        return
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {"__name__": block.name})
    told = re.findall(r"^\s*print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert told == out.getvalue().splitlines()


def test_few_blocks_are_not_run() -> None:
    assert sum(not block.is_run for block in BLOCKS) <= MAX_NOT_RUN
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "text"}


def test_printed_cards_are_those_of_varlit_info(toy: Path) -> None:
    shown = 0
    for first, second in pairwise(BLOCKS):
        words = commands(first)[0] if first.language == "bash" and first.is_run else []
        if words[:2] == ["varlit", "info"] and second.language == "text":
            assert second.text.splitlines() == run(*words[1:]).splitlines()[1:], second.name
            shown += 1
    assert shown > 1


def test_recipes_shown_are_recipes(toy: Path) -> None:
    for block in (b for b in BLOCKS if b.language == "yaml"):
        words = re.search(r"Run: varlit (.*)", block.text)[1].split()  # type: ignore[index]
        Path(option_value(words, "-c") or "").write_text(block.text)
        check(words)


def test_the_results_table_agrees_with_the_recipes(toy: Path) -> None:
    rows = re.findall(r"^\| `(\w+)`.*?\| (.+?) \| (\d+) \| (\d+) \|", README.read_text(), re.M)
    assert {row[0] for row in rows} >= {"imagenet256", "d16", "d20", "d24", "d30"}
    for recipe, parameters, tokens, epochs in rows:
        card = run("info", recipe)
        assert re.search(rf"parameters\s+{parameters} ", card), card
        assert re.search(rf"tokens\s+{tokens} an image", card), card
        path = next((ROOT / "conf").glob(f"*/{recipe}.yaml"))
        assert read_yaml(path)["trainer"]["max_epochs"] == int(epochs)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = [title.lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def assert_leads_somewhere(target: str, folder: Path) -> None:
    place, _, anchor = target.partition("#")
    path = (folder / place).resolve()
    assert path.exists(), f"{target}: there is no {path}"
    assert not anchor or anchor in anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        inside = page if target.startswith("#") else None
        assert_leads_somewhere(f"{inside.name}{target}" if inside else target, page.parent)


def test_every_page_that_the_code_points_at_is_there() -> None:
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]:
        for target in re.findall(r"docs/[\w-]+\.md(?:#[\w-]+)?", path.read_text()):
            assert_leads_somewhere(target, ROOT)


def flat_keys(tree: dict, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")


def test_flags_and_targets_in_running_text_exist(toy: Path) -> None:
    fits = (["tokenizer", "fit", "-c", "folder"], ["var", "fit", "-c", "d16"])
    keys = {k for words in fits for k in flat_keys(yaml.safe_load(run(*words, "--print_config")))}
    keys = {key.replace(".init_args.", ".") for key in keys}
    keys |= {"print_config", "help", ALLOW_IMPORT.removeprefix("--")}
    keys |= {option[2:] for p in VERB_PARSERS for a in p._actions for option in a.option_strings}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for flag in re.findall(r"`--([\w.-]+)", text):
            assert flag in keys, f"{page.name}: --{flag}"
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in targets, f"{page.name}: make {target}"


def test_the_readme_is_short_and_keeps_a_place_for_the_demo() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert text.isascii(), "no emoji"
    assert re.search(r"<!-- demo:start -->.*\|.*<!-- demo:end -->", text, re.DOTALL)


@pytest.mark.slow
def test_the_commands_for_digits_do_their_work_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain = next(b for b in BASH if b.page.name == "quickstart.md" and "cache-tokens" in b.text)
    short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    pictures = {"tokenizer": "--reconstructions.every_n_steps", "var": "--samples.every_n_steps"}
    for words in varlit_commands(chain):
        is_fit = words[1] == "fit"
        run(*words, *([*short, pictures[words[0]], "0"] if is_fit else []))
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "samples.png"}
