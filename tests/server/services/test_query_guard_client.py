"""The query guard as the client and the command line tell of it."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from near_copies import copies, logits_of, picture, use_up
from PIL import Image

from keylock.cli import main
from keylock_client import AsyncClient, Client, SimilarQueriesError
from keylock_server.auth.authentication import Authenticator


def test_the_client_is_told_in_its_own_words_and_does_not_wait(serve, server_log):
    calls = serve()
    near = [*copies(30)[4:]]
    with Client(calls.server.target) as client:
        client.predict([picture(), *copies(4)])
        begun = time.monotonic()
        for ask in (client.predict, client.explain):
            with pytest.raises(SimilarQueriesError, match="ask for labels alone") as caught:
                ask([picture(1), near[0]])
            assert caught.value.message.startswith("image 2 of 2 is nearly the same")
            assert (caught.value.labels_left, caught.value.row, caught.value.code) == (True, 1, "RESOURCE_EXHAUSTED")
            assert 0 < caught.value.retry_after_s <= 600
        (answer,) = client.explain_many([near[0]])
        assert isinstance(answer.error, SimilarQueriesError)
        assert time.monotonic() - begun < 20
        assert client.label(near[0]) == calls.server.model.manifest.classes[logits_of(near[0]).argmax()]
        assert client.label(near[:3]) == [client.label(image) for image in near[:3]]


@pytest.mark.parametrize("exchange_tokens", [False, True])
def test_the_client_shows_a_license_for_similar_queries_where_it_is_wanted(serve, vendor, exchange_tokens, monkeypatch):
    calls = serve()
    near = [*copies(30)[4:]]
    license = vendor.grant(similar_queries=True).token
    with Client(calls.server.target, license=license, exchange_tokens=exchange_tokens) as client:
        client.predict([picture(), *copies(4)])
        shown = []
        authenticate = Authenticator.authenticate
        monkeypatch.setattr(
            Authenticator, "authenticate", lambda *given, **more: shown.append(1) or authenticate(*given, **more)
        )
        client.predict(picture(1))
        assert not shown
        assert len(client.predict(near[:3])) == 3
        assert len(client.predict(near[3:6])) == 3
        assert shown
        assert client.license().similar_queries
    with Client(calls.server.target, license=vendor.grant().token) as client:
        with pytest.raises(SimilarQueriesError):
            client.predict(near[7])
        assert not client.license().similar_queries


def test_the_client_for_asyncio_asks_for_labels(serve):
    calls = serve()
    use_up(calls)

    async def ask():
        async with AsyncClient(calls.server.target) as client:
            with pytest.raises(SimilarQueriesError):
                await client.predict(copies(6)[5])
            return await client.label(copies(6)[5]), await client.label([picture()])

    one, several = asyncio.run(ask())
    assert [one] == several == [calls.server.model.manifest.classes[logits_of(picture()).argmax()]]


def test_the_shell_says_what_helps(serve, vendor, tmp_path, monkeypatch, capsys):
    calls = serve()
    use_up(calls)
    monkeypatch.setenv("KEYLOCK_TARGET", calls.server.target)
    monkeypatch.chdir(tmp_path)
    for name, image in (("new.png", picture(1)), ("near.png", copies(6)[5])):
        Image.fromarray(image).save(name)
    Path("exempt.license").write_text(vendor.grant(similar_queries=True).token)

    def run(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    for command in ("predict", "explain"):
        code, out, err = run(command, "new.png", "near.png")
        assert code == 7, err
        assert "new.png" in out
        assert "near.png" not in out
        assert "near.png is nearly the same as others" in err
        assert "give one with --license-file" in err
    code, out, err = run("predict", "near.png", "--labels-only")
    assert code == 0, err
    assert out.split()[:2] == ["image", "label"]
    code, out, _ = run("predict", "near.png", "--labels-only", "--json")
    assert json.loads(out)["predictions"][0].keys() == {"image", "label"}
    assert run("predict", "new.png", "near.png", "--license-file", "exempt.license")[0] == 0
