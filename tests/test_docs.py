"""The documents: links and paths that exist, plain sentences, and speeds that the records have."""

import json
import re

import pytest
from paths import ROOT

from csrc import build_native

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
LONGEST = 160
#: Folders whose files documents name by their paths from the root.
FOLDERS = "stdc_fast|csrc|kernels|bench|tests|docs|examples|\\.ci"
PATH = re.compile(rf"(?<![\w/.~-])(?:{FOLDERS})/[\w.*/-]*[\w*/]")
#: A path that a command writes.
WRITTEN = re.compile(r"(?:--out|-o|>)\s+\S+")
CODE = re.compile(r"```.*?```|(?:(?<=\n\n)|\A)(?: {4}[^\n]*\n?)+|`[^`\n]*`", re.S)
PLACE = re.compile(r"!?\[([^\]]*)\]\(([^()\s]*)\)")
BAD_START = re.compile(r"(?:^|[.!?:] |\n[-*] )((?:What|Who|Whoever|Those|Of a)\b[^.\n]{0,40})", re.M)


def prose(text):
    """Without code, tables, headings and pictures, and links as their words."""
    text = CODE.sub("code", text)
    text = PLACE.sub(lambda found: "" if found[0].startswith("!") else found[1], text)
    lines = [line for line in text.split("\n") if not line.startswith(("|", "#"))]
    return "\n".join(lines)


def anchors(text):
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def nested(text):
    """Parentheses in parentheses."""
    for paragraph in re.split(r"\n\s*\n", text):
        if found := re.search(r"\([^()]*\([^()]*\)", paragraph):
            yield f"parentheses in parentheses: {' '.join(found[0].split())}"


def problems(path, text, root=ROOT):
    """What is wrong with a document, one line each."""
    plain = prose(text)
    for line in plain.split("\n"):
        if len(line) > LONGEST:
            yield f"a line of {len(line)} characters: {line[:50]}..."
    yield from nested(plain)
    for found in BAD_START.finditer(plain):
        yield f"a sentence that starts with {found[1]!r}"
    for found in re.finditer(r"\bcan not\b", plain):
        yield f"'can not': {plain[max(0, found.start() - 30) : found.end()]!r}"
    for _, place in PLACE.findall(text):
        target, _, anchor = place.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            yield f"a link to {place}, which is not there"
        elif anchor and anchor not in anchors(text if file == path else file.read_text()):
            yield f"a link to {place}, which has no such heading"
    for code in CODE.findall(text):
        for name in PATH.findall(WRITTEN.sub("", code)):
            if not any(root.glob(name.rstrip("/"))):
                yield f"names {name}, which is not there"
        for name in re.findall(r"python -m (bench\.\w+)", code):
            if not (root / f"{name.replace('.', '/')}.py").is_file():
                yield f"names {name}, which is not there"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document(path):
    assert list(problems(path, path.read_text())) == []


GOOD = """# A heading

See [it](#a-heading), [there](docs/b.md#more) and `bench/a.py` (or not).
Run `python -m bench.a --out docs/new.md`.

    bench/a.py     # (code (has (many)))

| a table of any length, with `bench/*.py` | (a) |
"""


@pytest.fixture
def tree(tmp_path):
    for name, text in {"README.md": GOOD, "bench/a.py": "", "docs/b.md": "## More\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_good_document(tree):
    assert list(problems(tree / "README.md", GOOD, tree)) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("word " * 33, "a line of 16"),
        ("It is (nested\n(like this)).", "parentheses in parentheses: (nested (like this)"),
        ("Fine. What is found counts.", "starts with 'What is found counts'"),
        ("Those that fail stop.", "starts with 'Those that"),
        ("- Of a batch one is kept.", "starts with 'Of a batch"),
        ("It can not run.", "'can not'"),
        ("[gone](docs/c.md)", "docs/c.md, which is not there"),
        ("![gone](c.png)", "c.png, which is not there"),
        ("[gone](docs/b.md#less)", "no such heading"),
        ("[gone](#nowhere)", "no such heading"),
        ("It is in `bench/b.py`.", "names bench/b.py"),
        ("It is in `bench/*.sh`.", "names bench/*.sh"),
        ("| `docs/results/` | a folder |", "names docs/results/"),
        ("Run `python -m bench.b`.", "names bench.b"),
        ("```sh\npython bench/c.py\n```", "names bench/c.py"),
    ],
)
def test_what_is_wrong_is_said(tree, line, said):
    (problem,) = problems(tree / "README.md", f"{GOOD}\n{line}\n", tree)
    assert said in problem


def speeds(text, record):
    """Rows of the README's table whose times the record does not have."""
    times = {}
    for row in record["rows"]:
        if row["seconds"]:
            key = row["runner"], row["dtype"], row["scope"]
            times[key] = 1e3 * row["seconds"]["p50"]
    table = re.search(r"^\| runner \| dtype \| (.+)\|\n\|.*\n((?:\|.*\n)+)", text, re.M)
    scopes = re.findall(r"(\w+), ms", table[1])
    for line in table[2].splitlines():
        name, dtype, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        runner = {"stdc_fast, CPU engine": "ours cpu"}.get(name, name)
        for scope, cell in zip(scopes, cells, strict=True):
            known = times.get((runner, dtype, scope))
            if cell != ("not measured" if known is None else f"{known:#.3g}".rstrip(".")):
                yield f"{name} {dtype} {scope}: {cell}, the record has {known}"


def test_speeds_of_the_readme_are_those_of_the_record():
    text = (ROOT / "README.md").read_text()
    (name,) = re.findall(r"record `([\w-]+)`", text)
    lines = (ROOT / "bench/results/cpu.jsonl").read_text().splitlines()
    (record,) = (found for line in lines if (found := json.loads(line))["id"] == name)
    assert list(speeds(text, record)) == []
    assert record["header"]["commit"].startswith(re.search(r"commit\s+(\w+)", text)[1])
    assert record["time"].startswith(re.search(r"cpu\.jsonl`: ([\d-]+)", text)[1])
    assert len(list(speeds(text.replace("42.5", "142.5"), record))) == 1
    assert len(list(speeds(text.replace("not measured", "1.00", 1), record))) == 1


def test_every_instruction_set_that_is_built_can_be_asked_for_by_its_name():
    (row,) = re.findall(r"^\| `STDC_FAST_CPU_ISA` .*$", (ROOT / "docs/environment.md").read_text(), re.M)
    for name in set(build_native.SETS) - {"amx_emulated"}:  # only tests take it
        assert f"`{name}`" in row
