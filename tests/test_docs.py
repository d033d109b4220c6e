"""What the documentation names exists: files, flags, config keys, links, registering functions."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

import glipv2_d2
from glipv2_d2 import add_glipv2_config
from glipv2_d2.program.config_arguments import parse_train_arguments
from glipv2_d2.program.main import COMMANDS, command_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")})
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# It names what was renamed.
CHANGELOG = ROOT / "CHANGELOG.md"
FILE = re.compile(
    r"\b(?:configs|datasets|docs|glipv2_d2|tests|tools)/[\w./{},*-]*\.(?:py|yaml|md|txt)\b|\btrain_net\.py\b"
)
KEY = re.compile(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)(?:\.[A-Z][A-Z0-9_]*)+\b")
# A word in capitals stands for a name that the reader puts there, LENGTH is the head that CONTRIBUTING.md adds.
PLACEHOLDER = re.compile(r"[A-Z]{4}\w*\.(?:py|yaml)$|^MODEL\.GLIPV2\.LENGTH\b")
# The modules of the program glipv2.
PROGRAM = ROOT / "glipv2_d2" / "program"
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A command, with the lines that a backslash joins to it.
COMMAND = re.compile(r"^(?:\S+=\S* )*(?:python|torchrun|glipv2) (?:.*\\\n)*.*$", re.MULTILINE)


def read(page: Path) -> str:
    """The text of a page; of a config its comments, as they would stand in a page."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    return "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))


def alternatives(path: str) -> list[str]:
    """``a{b,c}`` as ``ab`` and ``ac``."""
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        return [path]
    heads = (path[: match.start()] + one + path[match.end() :] for one in match.group(1).split(","))
    return [one for head in heads for one in alternatives(head)]


def commands(text: str) -> Iterator[tuple[Path, list[str]]]:
    """Programs of the repository that a text starts, with their arguments."""
    for match in COMMAND.finditer(text):
        words = shlex.split(match.group().replace("\\\n", " ").split(" > ")[0], comments=True)
        for place, word in enumerate(words):
            if word.endswith(".py") and (ROOT / word).is_file():
                yield ROOT / word, words[place + 1 :]
            elif (place == 0 and word == "glipv2") or words[max(place - 1, 0) : place + 1] == ["-m", "glipv2_d2"]:
                name = words[place + 1]
                # A word in capitals stands for any command.
                if not name.startswith("-") and not name.isupper():
                    yield PROGRAM / f"{COMMANDS[name].module}.py", words[place + 2 :]


def flags(program: Path) -> set[str]:
    """Flags of a program: of its own file and of those that it imports from its folder."""
    if program.name == "train_net.py":
        return {"--" + name.replace("_", "-") for name in vars(parse_train_arguments([]))}
    tree = ast.parse(program.read_text(encoding="utf-8"))
    doors = [node.args[0].value for node in ast.walk(tree) if isinstance(node, ast.Call) and is_door(node)]
    doors += [name for name, command in COMMANDS.items() if program == PROGRAM / f"{command.module}.py"]
    if doors:
        return set(command_parser(doors[0])._option_string_actions)
    imported = [
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    ]
    files = [program, *(file for name in imported for file in program.parent.glob(f"{name}.py"))]
    files += [file for name in imported for file in program.parent.glob(f"{name}/*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant) and str(node.value).startswith("--")}


def is_door(call: ast.Call) -> bool:
    """True for a call that hands a tool's arguments to a command of the program."""
    return isinstance(call.func, ast.Name) and call.func.id == "run_command"


def config() -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    return cfg


def has_key(cfg: CfgNode, key: str) -> bool:
    node = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=named)
def test_files_flags_and_keys_exist(page):
    text, cfg, wrong = read(page), config(), []
    made = set(re.findall(r"> (configs/\S+)", text))
    for path in {one for found in FILE.findall(text) for one in alternatives(found)} - made:
        if page != CHANGELOG and not PLACEHOLDER.search(path) and not list(ROOT.glob(path)):
            wrong.append(path)
    for program, words in commands(text):
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{program.name} {flag}" for flag in sorted(given - flags(program))]
        pairs = [(key, value) for key, value in zip(words, words[1:]) if KEY.fullmatch(key) and has_key(cfg, key)]
        for key, value in pairs:
            if not value.isupper():
                cfg.merge_from_list([key, value])
    keys = {key for key in KEY.findall(text) if not PLACEHOLDER.search(key)}
    wrong += [key for key in sorted(keys) if page != CHANGELOG and not has_key(cfg, key)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith(("http:", "https:")):
            continue
        if not target.exists():
            wrong.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            wrong += [] if anchor in map(slug, headings) else [link]
    assert wrong == []


def test_the_model_zoo_has_every_config():
    zoo = (ROOT / "docs" / "MODEL_ZOO.md").read_text(encoding="utf-8")
    folders = [config for config in CONFIGS if config.parent.name != "configs"]
    names = [config.relative_to(ROOT / "configs").as_posix() for config in folders]
    assert [name for name in names if f"`{name}`" not in zoo] == []


def test_the_page_of_the_program_has_every_command():
    page = (ROOT / "docs" / "program.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"| `glipv2 {name}` |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pages_name_public_functions_and_have_short_lines(page):
    text = page.read_text(encoding="utf-8")
    public = {*glipv2_d2.__all__, *glipv2_d2.data.__all__}
    wanted = set(re.findall(r"\bregister_[a-z0-9_]*[a-z0-9]\b", text)) if page != CHANGELOG else set()
    assert wanted <= public
    # A row of a table cannot be broken.
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    ("text", "program", "words"),
    [
        ("python train_net.py --a b \\\n    C d  # e", "train_net.py", ["--a", "b", "C", "d"]),
        ("A=b torchrun --n 2 train_net.py --a", "train_net.py", ["--a"]),
        ("    python train_net.py --a", None, None),
        ("glipv2 eval --a B", "glipv2_d2/program/evaluate.py", ["--a", "B"]),
        ("python -m glipv2_d2 eval C", "glipv2_d2/program/evaluate.py", ["C"]),
        ("glipv2 --version", None, None),
    ],
)
def test_commands_are_found(text, program, words):
    assert list(commands(text)) == ([(ROOT / program, words)] if program else [])
