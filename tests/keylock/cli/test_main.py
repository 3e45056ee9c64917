"""The command line starts at once, and every error ends as one line, an exit code and an empty answer."""

import ast
import errno
import json
import os
import re
import resource
import subprocess
import sys
import types
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer

import keylock
from keylock import cli, errors
from keylock.cli import _console, main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of a command, as a module of its own that is imported when it is run."""

    def install(function):
        module = types.ModuleType("tests_installed_command")
        module.run = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        row = cli.CommandRow("try", f"{module.__name__}:run", "Try.", "Test")
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, row))

    return install


def test_importing_the_command_line_loads_nothing_heavy():
    script = "import keylock.cli, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "torchvision", "onnxruntime", "sqlalchemy", "grpc", "numpy", "PIL", "cryptography", "joserfc"}
    assert "typer" in loaded
    assert not heavy & set(loaded)


@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [
        ({}, "passive", "2000"),
        ({"OMP_WAIT_POLICY": "active"}, "active", "None"),
        ({"GOMP_SPINCOUNT": "7"}, "passive", "7"),
    ],
)
def test_threads_of_torch_sleep_while_they_wait_unless_the_user_has_said_otherwise(given, policy, spins):
    shown = "*map(os.environ.get, ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'])"
    script = f"import os; from keylock.cli import main; main(['--version']); print({shown})"
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == f"{policy} {spins}"


# They are shown a license, or have one served, and charge nothing of it themselves.
_COST_NOTHING = {
    "serve",
    "predict",
    "disclose",
    "receipt show",
    "receipt verify",
    "receipt prove",
    "audit-log verify-proof",
}


def test_every_command_that_spends_units_has_a_limit_of_them():
    def leaves(name, command):
        below = getattr(command, "commands", {})
        return [leaf for key, one in below.items() for leaf in leaves(f"{name} {key}", one)] or [(name, command)]

    found = {}
    for row in cli.COMMANDS:
        for name, command in leaves(row.name, row.load()):
            options = {option for one in command.params for option in one.opts}
            if options & {"--license-file", "--offline-license"}:
                found[name] = "--max-units" in options
    assert {name for name, limited in found.items() if not limited} == _COST_NOTHING
    assert {name for name, limited in found.items() if limited} == {"explain", "explain-many"}


def test_help_is_instant_and_lists_every_command():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-m", "keylock", "--help"], capture_output=True, text=True, check=True)
    # Time of the processor, which other work of the machine does not lengthen as it does that of the clock.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4
    for row in cli.COMMANDS:
        assert f"  {row.name} " in shown.stdout
        assert row.summary in shown.stdout
    assert not shown.stderr


@pytest.mark.parametrize("row", cli.COMMANDS, ids=lambda row: row.name)
def test_every_command_can_be_imported_and_has_help(row, capsys):
    assert main([row.name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: keylock {row.name}")
    assert "-h, --help" in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"keylock {keylock.__version__}\n"


def test_no_command_is_a_usage_error_that_shows_the_help(capsys):
    assert main([]) == 2
    assert "Customer:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["explian"],
            "error: No such command 'explian'. Did you mean 'explain', 'explain-many'? (see 'keylock --help')\n",
        ),
        (["inspekt"], "error: No such command 'inspekt'. Did you mean 'inspect'? (see 'keylock --help')\n"),
        (["--loud"], "error: No such option: --loud (see 'keylock --help')\n"),
        (["predict"], "error: Missing argument 'IMAGE' (see 'keylock predict --help')\n"),
        (["predict", "--loud"], "error: No such option: --loud (see 'keylock predict --help')\n"),
        (["predict", "--timeout", "soon", "x"], None),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(arguments, line, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("error: ")
    assert line is None or shown.err == line


def _leaves(kind):
    return [kind] + [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]


def test_a_keylock_error_is_one_line_and_its_own_code(command, capsys):
    for kind in _leaves(errors.KeylockError):
        error = kind.__new__(kind)
        Exception.__init__(error, "two\nlines")
        error.message = "two\nlines"
        command(_raiser(error))
        assert main(["try"]) == kind.exit_code
        assert capsys.readouterr() == ("", "error: two lines\n")


def _raiser(error):
    def fail() -> None:
        raise error

    return fail


def test_an_unknown_exception_is_named_but_not_quoted(command, capsys):
    command(_raiser(RuntimeError("the seed is hunter2")))
    assert main(["try"]) == 70
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: unexpected RuntimeError: this is a fault in keylock")
    assert "hunter2" not in shown.err


@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(command, capsys, arguments):
    command(_raiser(errors.DataError("no data")))
    assert main(arguments) == 3
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: no data\n")


def test_after_two_dashes_debug_is_an_argument(command, capsys):
    def show(words: list[str]) -> None:
        typer.echo(words)

    command(show)
    assert main(["try", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "['--debug']\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption_is_code_130(command, capsys, error):
    command(_raiser(error))
    assert main(["try"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_chosen_exit_code_is_kept(command):
    command(_raiser(typer.Exit(9)))
    assert main(["try"]) == 9


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "train"), ("sqlalchemy", "server"), ("onnxruntime", "server")]
)
def test_a_missing_extra_is_named(command, capsys, package, extra):
    command(_raiser(ModuleNotFoundError("No module", name=f"{package}.something")))
    assert main(["try"]) == 10
    assert f"needs {package}" in (shown := capsys.readouterr().err)
    assert f"'.[{extra}]'" in shown


def test_a_full_disk_is_no_fault_of_keylock(command, capsys):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command(full)
    assert main(["try"]) == cli.EXIT_FILE
    said = capsys.readouterr().err
    assert said == (
        "error: cannot write what this command makes: No space left on device: make room, and run it again\n"
    )


def test_a_module_that_is_missing_for_no_good_reason_is_a_fault(command):
    command(_raiser(ModuleNotFoundError("No module", name="keylock.cli.nonsense")))
    assert main(["try"]) == 70


def test_a_file_that_cannot_be_used_is_named(command, capsys):
    def read() -> None:
        Path("/no/such/file").read_text()

    command(read)
    assert main(["try"]) == 3
    assert capsys.readouterr().err == "error: cannot use '/no/such/file': No such file or directory\n"


def test_a_reader_that_goes_away_is_no_error():
    script = (
        "import sys; from keylock import cli\n"
        "def flood() -> None:\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "cli.flood = flood\n"
        "cli.COMMANDS += (cli.CommandRow('try', 'keylock.cli:flood', 'Try.', 'Test'),)\n"
        "sys.exit(cli.main(['try']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    shown = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(20) == 1
    assert shown == ""


def test_json_is_one_document(capsys):
    @dataclass
    class Point:
        x: int
        where: Path

    when = datetime(2030, 1, 2, tzinfo=UTC)
    document = {"point": Point(1, Path("a")), "when": when, "set": {"b", "a"}, "n": np.float32(0.5), "é": np.arange(2)}
    _console.print_json(document)
    assert json.loads(capsys.readouterr().out) == {
        "point": {"x": 1, "where": "a"},
        "when": "2030-01-02T00:00:00+00:00",
        "set": ["a", "b"],
        "n": 0.5,
        "é": [0, 1],
    }
    with pytest.raises(ValueError, match="JSON"):
        _console.print_json({"x": float("nan")})
    with pytest.raises(TypeError, match="no JSON form"):
        _console.print_json({"x": object()})


def test_tables_align_text_left_and_numbers_right(capsys):
    _console.print_table(("name", "share"), [("a", "5.0%"), ("longer", "100.0%")])
    _console.print_pairs({"id": 1, "customer": "Acme [x]"})
    assert capsys.readouterr().out == (
        "name     share\na         5.0%\nlonger  100.0%\nid        1\ncustomer  Acme [x]\n"
    )


def test_the_documentation_lists_the_commands_and_the_codes():
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for row in cli.COMMANDS:
        assert f"| `keylock {row.name}` | {row.summary} |" in text
    assert text.count("| `keylock ") == len(cli.COMMANDS)
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    raised = {kind.exit_code for kind in _leaves(errors.KeylockError)}
    own = {cli.EXIT_FILE, cli.EXIT_MISSING_EXTRA, cli.EXIT_AUDIT_FAILED, cli.EXIT_BUG, cli.EXIT_INTERRUPTED}
    assert documented == raised | {0, 2} | own


def test_whatever_names_an_extra_ends_with_its_code():
    # An attack that cannot run is a row of the report and ends nothing.
    allowed = {"NotApplicableError"}
    wanting = []
    for folder in ("keylock", "client/keylock_client", "server/keylock_server"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                said = ast.unparse(node).replace("\\", "") if isinstance(node, ast.Raise) else ""
                ends = "for_missing_extra()" in said or any(name in said for name in allowed)
                if "pip install '" in said and not ends:
                    wanting.append(f"{path.name}:{node.lineno}")
    assert wanting == []
    assert errors.InputError("no").for_missing_extra().exit_code == cli.EXIT_MISSING_EXTRA
    assert errors.InputError("no").exit_code == cli.EXIT_FILE
