"""Files of ours are UTF-8, whatever the locale is."""

import ast

import pytest

from reproduce import ROOT

OPENS = {"open": "r", "fdopen": "r", "NamedTemporaryFile": "w+b", "TemporaryFile": "w+b"}  # default modes
BINARY = (("os", "open"), ("tarfile", "open"), ("Picture", "open"))  # no text
STARTS = ("run", "Popen", "check_output", "check_call")


def without_encoding(code: str) -> list[str]:
    """Calls that read or write text in the locale's encoding. Ruff's PLW1514 finds those whose receiver it
    knows to be a Path, and no subprocess."""
    calls = [one for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Call)]
    return [ast.unparse(call) for call in calls if follows_locale(call)]


def follows_locale(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given or (owner, name) in BINARY:
        return False
    if name in OPENS:
        values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        words = [one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        modes = [word for word in words if {*word} <= {*"rwaxbt+"}] or [OPENS[name]]
        return "t" in modes[0] if owner == "gzip" else "b" not in modes[0]
    if name in ("read_text", "write_text"):
        return bool(owner)
    return name in STARTS and "text" in given


@pytest.mark.parametrize(
    "code",
    ["p.read_text()", "(a / b).write_text(x)", "p.open()", "p.open('w')", "open(p)", "open(p, 'a')"]
    + ["os.fdopen(1, 'w')", "NamedTemporaryFile('w')", "subprocess.run(x, text=True)", "gzip.open(p, 'wt')"],
)
def test_what_follows_the_locale_is_found(code):
    assert without_encoding(code)


def test_every_file_is_opened_as_utf_8():
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    found = {str(file): without_encoding(file.read_text(encoding="utf-8")) for file in sources}
    assert {file: calls for file, calls in found.items() if calls} == {}
