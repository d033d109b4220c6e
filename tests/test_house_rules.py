"""What is not in this house: rules about the source that no reviewer should have to look for."""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from glipv2_d2.config import add_glipv2_config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "glipv2_d2"
PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAM_FILES = [ROOT / "setup.py", ROOT / "train_net.py"]
PROGRAM_FILES += sorted(file for folder in ("tools", "datasets") for file in (ROOT / folder).rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))

MAX_LINE_LENGTH = 120
MAX_FILE_LINES = 450
# A longer file says in its docstring why it is one.
LONG_FILE_REASON = "Longer than 450 lines:"
MAX_FUNCTION_LINES = 70
# Imports from the package in one file.
MAX_IMPORTS = 15
# A task is one row of a table: what depends on more than two tasks by name belongs into the table.
TASKS = {"detection", "grounding", "pseudo_grounding", "vqa", "captioning"}
MAX_TASK_NAMES = 2
# Joined here so that this file does not contain them.
UNFINISHED = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"\bHA" + r"CK\b"]))
UNFINISHED_WORDS = re.compile(r"NotImplemented(Error)?\b|\b(placeholder|stub|stubbed|simplified)s?\b", re.IGNORECASE)
KEY = re.compile(r"MODEL(\.[A-Z0-9_]+)+")
OTHER_WORDS = re.compile(r"label[ _]?map|lang(uage)?[ _]dict|positive[ _]map[ _]dict", re.IGNORECASE)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def matches(files: list[Path], pattern: re.Pattern) -> list[str]:
    texts = ((relative(file), file.read_text(encoding="utf-8")) for file in files)
    return [f"{name}: {match.group()}" for name, text in texts for match in pattern.finditer(text)]


def dotted_name(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted_name(node.func), node


def is_keyword(call: ast.Call, name: str, value: object) -> bool:
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return bool(found) and isinstance(found[0], ast.Constant) and found[0].value is value


# --- rules for the code of the package: each returns the lines that break it


def prints(tree: ast.AST) -> list[int]:
    return [call.lineno for name, call in calls(tree) if name in ("print", "pdb.set_trace", "breakpoint")]


def bare_excepts(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]


def swallowed_exceptions(tree: ast.AST) -> list[int]:
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [node.lineno for node in handlers if len(node.body) == 1 and isinstance(node.body[0], ast.Pass)]


def stored_configs(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if dotted_name(node) in ("self.cfg", "self._cfg")]


def configs_in_forward(tree: ast.AST) -> list[int]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    names = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Name)]
    return [node.lineno for node in names if node.id == "cfg"]


def probed_configs(tree: ast.AST) -> list[int]:
    probes = [call for name, call in calls(tree) if name in ("hasattr", "getattr") and call.args]
    return [call.lineno for call in probes if dotted_name(call.args[0]).split(".")[0] == "cfg"]


def global_statements(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]


def path_edits(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if dotted_name(node) == "sys.path"]


def long_functions(tree: ast.AST) -> list[int]:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [node.lineno for node in functions if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES]


PICKLE_READERS = {"load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"}


def only_raises(node: ast.stmt) -> bool:
    """True for a method that consists of ``raise Error(...)``, which calls nothing else."""
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return False
    (first, *others) = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return isinstance(first, ast.Raise) and not others and len(list(calls(first))) == 1


def refuses_all_but_plain_values(node: ast.AST) -> bool:
    """True for a reader of pickles that consists of a refusal to import and a refusal to look up."""
    if not isinstance(node, ast.ClassDef) or len(node.bases) != 1 or node.keywords or node.decorator_list:
        return False
    methods = node.body[1:] if ast.get_docstring(node) is not None else node.body
    names = sorted(getattr(method, "name", "") for method in methods)
    return names == ["find_class", "persistent_load"] and all(map(only_raises, methods))


def executed_files(tree: ast.AST) -> list[int]:
    """Loading that can run what a file says."""
    found = []
    refusing = {node.bases[0] for node in ast.walk(tree) if refuses_all_but_plain_values(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "_pickle", "cPickle"):
            names = PICKLE_READERS.intersection(alias.name for alias in node.names)
        else:
            module, _, name = dotted_name(node).rpartition(".")
            names = PICKLE_READERS & {name} if module.endswith("ickle") and node not in refusing else set()
        if names:
            found.append(node.lineno)
    for name, call in calls(tree):
        torch_load = name == "torch.load" and not is_keyword(call, "weights_only", True)
        numpy_load = name in ("np.load", "numpy.load") and any(key.arg == "allow_pickle" for key in call.keywords)
        numpy_load = numpy_load and not is_keyword(call, "allow_pickle", False)
        if name in ("eval", "exec", "yaml.load") or torch_load or numpy_load:
            found.append(call.lineno)
    return found


PACKAGE_RULES = [
    prints,
    bare_excepts,
    swallowed_exceptions,
    stored_configs,
    configs_in_forward,
    probed_configs,
    global_statements,
    path_edits,
    long_functions,
    executed_files,
]
BAD_EXAMPLES = {
    prints: "print(1)",
    bare_excepts: "try:\n    f()\nexcept:\n    g()",
    swallowed_exceptions: "try:\n    f()\nexcept ValueError:\n    pass",
    stored_configs: "def f(self, cfg):\n    self.cfg = cfg",
    configs_in_forward: "def forward(self, x):\n    return x if cfg.A else 2 * x",
    probed_configs: "hasattr(cfg.MODEL, 'A')",
    global_statements: "def f():\n    global a",
    path_edits: "sys.path.insert(0, 'a')",
    long_functions: "def f():\n" + "    a = 1\n" * MAX_FUNCTION_LINES,
    executed_files: "torch.load(file)",
}


def may_break(file: Path, rule: Callable[[ast.AST], list[int]]) -> bool:
    # detectron2's own DefaultTrainer and DefaultPredictor have this attribute, and their callers read it.
    return rule is stored_configs and file.parent == PACKAGE / "engine"


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_package_follows_rule(rule: Callable[[ast.AST], list[int]]):
    files = [file for file in PACKAGE_FILES if not may_break(file, rule)]
    assert [f"{relative(file)}:{line}" for file in files for line in rule(parse(file))] == []


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_rule_finds_a_breach(rule: Callable[[ast.AST], list[int]]):
    assert len(rule(ast.parse(BAD_EXAMPLES[rule]))) == 1


REFUSE_CLASS = "\n    def find_class(self, module, name):\n        'Refuse.'\n        raise Error(module)"
REFUSE_NAME = "\n    def persistent_load(self, pid):\n        raise Error(pid)"
LOOK_FIRST = REFUSE_CLASS.replace("Error(module)", "Error(super().find_class(module, name))")
ALLOW_SOME = REFUSE_CLASS.replace(
    "raise", "if module != 'os':\n            return super().find_class(module, name)\n        raise"
)


@pytest.mark.parametrize(
    ("source", "is_breach"),
    [
        ("torch.load(file, weights_only=True)", False),
        ("torch.load(file, weights_only=False)", True),
        ("np.load(file)", False),
        ("np.load(file, allow_pickle=False)", False),
        ("np.load(file, allow_pickle=True)", True),
        ("np.load(file, allow_pickle=flag)", True),
        ("pickle.load(file)", True),
        ("read = pickle.loads", True),
        ("from pickle import Unpickler", True),
        ("from pickle import UnpicklingError, dumps", False),
        ("pickle.Unpickler(file).load()", True),
        ("class Reader(pickle.Unpickler):\n    pass", True),
        (f"class Reader(pickle.Unpickler):{REFUSE_CLASS}", True),
        (f"class Reader(pickle.Unpickler):{REFUSE_CLASS}{REFUSE_NAME}", False),
        (f"class Reader(pickle.Unpickler):{REFUSE_CLASS}{REFUSE_NAME}\n    load = other", True),
        (f"class Reader(pickle.Unpickler):{LOOK_FIRST}{REFUSE_NAME}", True),
        (f"class Reader(pickle.Unpickler, Other):{REFUSE_CLASS}{REFUSE_NAME}", True),
        (f"class Reader(pickle.Unpickler):{ALLOW_SOME}{REFUSE_NAME}", True),
        ("eval(text)", True),
        ("model.eval()", False),
        ("yaml.safe_load(file)", False),
    ],
)
def test_only_loading_that_runs_nothing_is_allowed(source: str, is_breach: bool):
    assert bool(executed_files(ast.parse(source))) is is_breach


PROGRAM_RULES = [executed_files, bare_excepts, global_statements, path_edits, long_functions]


@pytest.mark.parametrize("rule", PROGRAM_RULES, ids=lambda rule: rule.__name__)
def test_programs_follow_rule(rule: Callable[[ast.AST], list[int]]):
    assert [f"{relative(file)}:{line}" for file in PROGRAM_FILES for line in rule(parse(file))] == []


# --- size, names and words


def test_files_are_short_enough_to_read():
    sizes = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE_FILES + PROGRAM_FILES}
    too_long = [file for file, size in sizes.items() if size > MAX_FILE_LINES]
    assert [relative(file) for file in too_long if LONG_FILE_REASON not in (ast.get_docstring(parse(file)) or "")] == []


def package_imports(tree: ast.AST) -> int:
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return sum(node.level > 0 or (node.module or "").startswith("glipv2_d2") for node in nodes)


def test_no_file_needs_half_of_the_package():
    # A front door imports what the package shows.
    files = [file for file in PACKAGE_FILES if file.name != "__init__.py"]
    assert [relative(file) for file in files if package_imports(parse(file)) > MAX_IMPORTS] == []
    assert package_imports(ast.parse("import re\nfrom re import sub\nfrom .a import b\nfrom glipv2_d2.c import d")) == 2


def task_names(tree: ast.AST) -> set[str]:
    return TASKS & {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str}


def test_no_file_but_the_tables_names_many_tasks():
    # The fields of each task, the tasks of each format, and a format with records under "detection" or "grounding".
    tables = {PACKAGE / "data" / "datasets" / name for name in ("dict_checks.py", "formats.py", "odvg.py")}
    many = [file for file in PACKAGE_FILES if len(task_names(parse(file))) > MAX_TASK_NAMES]
    assert [relative(file) for file in many if file not in tables] == []
    assert task_names(ast.parse("if task in ('vqa', 'song'):\n    f('detection')")) == {"vqa", "detection"}


def test_there_is_no_drawer():
    drawers = {"utils", "util", "misc", "helpers", "common"}
    assert [relative(path) for path in PACKAGE.rglob("*") if path.stem in drawers] == []


def test_no_line_is_too_long():
    too_long = []
    for file in PACKAGE_FILES + PROGRAM_FILES:
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        too_long += [f"{relative(file)}:{number}" for number, line in lines if len(line) > MAX_LINE_LENGTH]
    assert too_long == []


@pytest.mark.parametrize("pattern", [UNFINISHED, UNFINISHED_WORDS], ids=["marks", "words"])
def test_nothing_is_left_unfinished(pattern: re.Pattern):
    assert matches(PACKAGE_FILES + PROGRAM_FILES, pattern) == []


def test_there_is_one_word_for_one_thing():
    assert matches(PACKAGE_FILES, OTHER_WORDS) == []


def test_every_module_opens_with_its_role():
    assert [relative(file) for file in PACKAGE_FILES + PROGRAM_FILES if not ast.get_docstring(parse(file))] == []


def test_what_is_public_has_a_docstring():
    bare = []
    for file in PACKAGE_FILES:
        nodes = [node for node in parse(file).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        public = [node for node in nodes if not node.name.startswith("_")]
        bare += [f"{relative(file)}: {node.name}" for node in public if not ast.get_docstring(node)]
    assert bare == []


# --- tests that test


def called_names(function: ast.AST) -> set[str]:
    functions = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in functions}


def assertionless_tests(tree: ast.AST) -> list[str]:
    """Tests that cannot fail by what they find, neither themselves nor through a function of the same file."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    called = {name: called_names(node) for name, node in functions.items()}
    asserting = {name for name, node in functions.items() if ast.Assert in map(type, ast.walk(node))}
    asserting |= {"raises", "warns", "gradcheck"}
    asserting |= {name for names in called.values() for name in names if "assert" in name}
    for _ in functions:  # At most this many calls lie between a test and the assertion.
        asserting |= {name for name, names in called.items() if names & asserting}
    return [name for name in functions if name.startswith("test_") and name not in asserting]


def test_every_test_asserts_something():
    assert [f"{relative(file)}: {name}" for file in TEST_FILES for name in assertionless_tests(parse(file))] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def test_a():\n    f()", ["test_a"]),
        ("def test_a():\n    assert f()", []),
        ("def test_a():\n    with pytest.raises(ValueError):\n        f()", []),
        ("def test_a():\n    torch.testing.assert_close(a, b)", []),
        ("def check(a):\n    assert a\n\ndef test_a():\n    check(1)", []),
        ("def run(a):\n    return a\n\ndef test_a():\n    run(1)", ["test_a"]),
    ],
)
def test_a_test_without_assertion_is_found(source: str, found: list[str]):
    assert assertionless_tests(ast.parse(source)) == found


# --- every key of the config is read, every key that is read is declared


def leaves(node: CfgNode, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def read_chains(tree: ast.AST) -> set[tuple[str, ...]]:
    """Chains of upper-case attributes that are read, with local names for a branch of the config replaced by it.

    ``tower = cfg.MODEL.GLIPV2.TOWER; tower.CHANNELS`` gives ("MODEL", "GLIPV2", "TOWER", "CHANNELS"), and the branch
    itself; a chain whose beginning is unknown gives its upper-case end.
    """
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts))
            for target, value in pairs:
                name = dotted_name(value)
                if isinstance(target, ast.Name) and name.split(".")[-1].isupper():
                    aliases[target.id] = name
    chains = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            first, *others = dotted_name(node).split(".")
            for _ in range(len(aliases)):  # An alias may be made of another; a circle of them ends here.
                if first not in aliases:
                    break
                first, *before = aliases[first].split(".")
                others = before + others
            upper = tuple(part for part in others if part == part.upper())
            if upper:
                chains.add(upper)
        elif isinstance(node, ast.Constant) and KEY.fullmatch(str(node.value)):
            # A table of parts names the keys that switch them on.
            chains.add(tuple(node.value.split(".")))
    return chains


def config_readers() -> list[Path]:
    # What only names keys does not read them.
    tables = (PACKAGE / "config.py", PACKAGE / "detectron2_keys.py")
    return [file for file in [*PACKAGE_FILES, ROOT / "train_net.py"] if file not in tables]


def declared_keys() -> set[tuple[str, ...]]:
    before, after = get_cfg(), get_cfg()
    add_glipv2_config(after)
    return set(leaves(after)) - set(leaves(before))


def test_every_declared_key_is_read():
    chains = set().union(*(read_chains(parse(file)) for file in config_readers()))
    endings = {chain[-2:] for chain in chains if len(chain) > 1}
    assert sorted(".".join(key) for key in declared_keys() if key[-2:] not in endings) == []


def test_every_key_that_is_read_is_declared():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    for file in config_readers():
        for chain in read_chains(parse(file)):
            node = cfg
            if chain[0] not in cfg:
                continue  # A constant of a class, or the end of a chain whose beginning is not in this file.
            for name in chain:
                assert not isinstance(node, CfgNode) or name in node, f"{relative(file)} reads {'.'.join(chain)}"
                node = node[name] if isinstance(node, CfgNode) else node


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = cfg.MODEL.SWIN.DEPTHS", ("MODEL", "SWIN", "DEPTHS")),
        ("tower = cfg.MODEL.GLIPV2.TOWER\nx = tower.CHANNELS", ("MODEL", "GLIPV2", "TOWER", "CHANNELS")),
        ("g = cfg.MODEL.GLIPV2\nt = g.TOWER\nf(t.CHANNELS)", ("MODEL", "GLIPV2", "TOWER", "CHANNELS")),
        ("a, b = cfg.MODEL.SWIN, cfg.SOLVER.AMP\nf(b.DTYPE)", ("SOLVER", "AMP", "DTYPE")),
        ("def build(cfg):\n    return cfg.TEST.NMS_THRESH", ("TEST", "NMS_THRESH")),
        ("cfg.MODEL.SWIN.DEPTHS = 1", None),
    ],
)
def test_keys_that_are_read_are_found(source: str, expected: "tuple[str, ...] | None"):
    chains = read_chains(ast.parse(source))
    assert expected in chains if expected else ("MODEL", "SWIN", "DEPTHS") not in chains
