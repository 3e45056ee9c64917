"""The commands of grpcurl in the documentation ask what there is, and where grpcurl is installed they run."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from keylock.licensing.pem import armour

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text("utf-8"), re.DOTALL)
[(EXPORT_SERVER, EXPORT_TOKEN, *COMMANDS)] = [block.splitlines() for block in BLOCKS if "grpcurl" in block]
FLAGS = {"-plaintext": 0, "-expand-headers": 0, "-d": 1, "-H": 1, "-import-path": 1, "-proto": 1}


def parts_of(command):
    """Flags with their values, and what follows them."""
    words = shlex.split(command.rpartition("| ")[2])[1:]
    flags = {}
    while words[0].startswith("-"):
        flag = words.pop(0)
        flags.setdefault(flag, []).extend(words.pop(0) for _ in range(FLAGS[flag]))
    return flags, words


@pytest.fixture(scope="module")
def reflected(calls):
    """What the server tells of itself."""
    return DescriptorPool(ProtoReflectionDescriptorDatabase(calls.channel))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_asked_is_what_reflection_tells_of(reflected, command):
    flags, (server, *asked) = parts_of(command)
    assert server == "$SERVER"
    assert "-plaintext" in flags
    if "-proto" in flags:
        assert (ROOT / flags["-import-path"][0] / flags["-proto"][0]).is_file()
        assert (ROOT / flags["-import-path"][1] / "google" / "rpc" / "status.proto").is_file()
    if asked == ["list"]:
        return
    if asked[0] == "describe":
        assert reflected.FindServiceByName(asked[1]).methods
        return
    [method] = asked
    service, _, name = method.partition("/")
    found = reflected.FindServiceByName(service).methods_by_name[name]
    [text] = flags.get("-d", ["{}"])
    if text == "@":
        text = re.search(r"printf '(.*?)'", command)[1].replace("%s", "AAAA")
    json_format.Parse(text, message_factory.GetMessageClass(found.input_type)())
    assert flags.get("-H", ["authorization: Bearer ${TOKEN}"]) == ["authorization: Bearer ${TOKEN}"]
    assert ("-H" in flags) == ("-expand-headers" in flags)


def test_the_token_is_that_of_the_license_file(vendor, tmp_path):
    token = vendor.grant().token
    (tmp_path / "acme.license").write_text(armour(token).replace("\n", "\r\n"))
    command = f'{EXPORT_SERVER}; {EXPORT_TOKEN}; printf "%s %s" "$SERVER" "$TOKEN"'
    done = subprocess.run(["sh", "-euc", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"localhost:8470 {token}"


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
def test_the_commands_run(calls, vendor, tiny, tmp_path):
    Image.fromarray(tiny.pixels(8, 8)).save(tmp_path / "cat.png")
    for folder in ("proto", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    granted = vendor.grant()
    place = {"SERVER": f"localhost:{calls.server.port}", "TOKEN": granted.token}
    told = []
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            env=os.environ | place,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        told.append(done.stdout)
    services, described, *answers = told
    assert "keylock.v1.LicenseService" in services.splitlines()
    assert "rpc ExplainStream (" in described
    model, estimate, decoy, true, usage, license, health = map(json.loads, answers)
    assert model["classes"] == list(tiny.classes)
    assert estimate["units"] == 3
    assert "keyed" not in decoy["results"][0]
    assert true["results"][0]["keyed"] is True
    assert usage["quotas"][0]["used"] == "1"
    assert license["license"]["id"] == granted.id
    assert health == {"status": "SERVING"}
