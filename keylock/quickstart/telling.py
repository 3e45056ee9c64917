"""The story, chapter by chapter. Each does for real what a vendor or a customer does, and none knows what comes out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from keylock.bundle import KeyFile, Manifest, open_bundle
from keylock.crypto.issuers import home_keys
from keylock.crypto.signing import Home, SigningKey
from keylock.data import DataSource, open_data
from keylock.data.batches import load_batch
from keylock.files.atomic import PUBLIC, write_file
from keylock.licensing import License, issue, new_license_id
from keylock.licensing.handing_over import hand_over
from keylock.locking.decoys import decoy_of
from keylock.pipeline import TrainOutcome, TrainPlan, train
from keylock.pipeline.trial import untrained
from keylock.quickstart.customers import Answers, ask
from keylock.quickstart.figures import Evidence, figures_of, gather
from keylock.quickstart.folder import Folder
from keylock.quickstart.recipe import Recipe
from keylock.quickstart.stamped import Stamped, explain_stamped
from keylock.quickstart.story import Chapter, Story, Teller
from keylock.reports.environment import installed_versions
from keylock.store import LicenseStore
from keylock.training import LockSettings
from keylock.training.devices import in_quickest_threads, mixed_precision
from keylock.trigger.keys import KeySeed
from keylock_client import Client, LicenseRefusedError
from keylock_server import ServerSettings, serving

__all__ = ["tell"]

_LICENSE_DAYS = 365
_STAMPED = 32
"""Stamped pictures that are read, one by one."""

_PATIENCE_S = 300.0
"""How long an answer may take: the machine may be busy with other work, and nothing is wrong then."""


@dataclass
class _Pen:
    """Writes down the chapters, and passes the steps of a training on to the teller; a `Progress`."""

    teller: Teller
    clock: Callable[[], float]
    chapters: list[Chapter] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    _begun: tuple[str, float] = ("", 0.0)

    @contextmanager
    def chapter(self, title: str) -> Iterator[list[str]]:
        """Time a chapter; its sentences are added to the list that the block gets."""
        self.teller.say(f"{len(self.chapters) + 1}. {title}")
        begun, sentences = self.clock(), list[str]()
        yield sentences
        self.chapters.append(Chapter(title, " ".join(sentences), self.clock() - begun))

    def start(self, stage: str, total: int, done: int) -> None:
        self._begun = (stage, self.clock())
        self.teller.start(stage, total, done)

    def doing(self, what: str) -> None:
        self.teller.doing(what)

    def advance(self, figures: Mapping[str, float]) -> None:
        self.teller.advance(figures)

    def finish(self) -> None:
        stage, begun = self._begun
        self.stages[stage] = self.clock() - begun
        self.teller.finish()


def tell(
    folder: Folder,
    recipe: Recipe,
    *,
    teller: Teller,
    now: Callable[[], datetime],
    clock: Callable[[], float],
    seed: int = 0,
) -> Story:
    """Run the whole story.

    Args:
        folder: Where everything goes.
        recipe: How much to train and to measure.
        teller: Hears it while it happens.
        now: The time.
        clock: Seconds, to measure durations with.
        seed: Of everything drawn at random but the secrets.

    Raises:
        InputError: The folder holds something else.
        KeylockError: As the parts do.
    """
    pen = _Pen(teller, clock)
    folder.claim()
    data = _draw(pen, recipe, seed)
    secret, key_file, signing_key = _make_secrets(pen, folder)
    outcome = _train(pen, folder, recipe, data, secret, key_file, signing_key, now=now, seed=seed)
    count = min(recipe.served_images, len(data.test))
    images = data.test.resized(data.preprocessing)[:count]
    license, keyed, keyless = _serve_and_ask(pen, folder, recipe, outcome.manifest, images, signing_key, now)
    evidence = _compute_references(pen, data, outcome, count, keyed, keyless)
    stamped = _stamp(pen, folder, recipe, outcome, images)
    with pen.chapter("Measure what the customers got") as text:
        figures = figures_of(evidence)
        text.append(f"Every map of {count} images was compared with the reference model's and with the drawn object.")
    _write_samples(folder, data, images)
    return Story(
        folder=folder,
        manifest=outcome.manifest,
        chapters=tuple(pen.chapters),
        figures=figures,
        evidence=evidence,
        images=images,
        license=license,
        stamped=stamped,
        precision=outcome.lock.settings.precision,
        finished=now(),
        versions=installed_versions(),
    )


def _draw(pen: _Pen, recipe: Recipe, seed: int) -> DataSource:
    with pen.chapter("Draw a data set") as text:
        data = open_data("shapes", seed=seed, train_count=recipe.train_images, test_count=recipe.test_images)
        height, width = data.preprocessing.size
        text.append(
            f"{len(data.train):,} images to train on and {len(data.test):,} to measure on, {width} x {height} pixels: "
            f"{len(data.classes)} shapes on textured backgrounds, with the exact mask of every object."
        )
    return data


def _make_secrets(pen: _Pen, folder: Folder) -> tuple[KeySeed, KeyFile, SigningKey]:
    with pen.chapter("Make the vendor's secrets") as text:
        if folder.seed.exists():
            secret = KeySeed.from_file(folder.seed)
            text.append("The key seed of an earlier run is used again.")
        else:
            secret = KeySeed.generate()
            secret.write(folder.seed)
            text.append("The key seed is 256 random bits.")
        key_file = KeyFile(folder.key) if folder.key.exists() else KeyFile.create(folder.key)
        home = Home.open(folder.home, create=True)
        text.append(f"A key file seals it, and the issuer {home.verifying_key().key_id} signs.")
    return secret, key_file, home.signing_key()


def _train(
    pen: _Pen,
    folder: Folder,
    recipe: Recipe,
    data: DataSource,
    secret: KeySeed,
    key_file: KeyFile,
    signing_key: SigningKey,
    *,
    now: Callable[[], datetime],
    seed: int,
) -> TrainOutcome:
    plan = TrainPlan(
        out=folder.bundle,
        name="shapes",
        data=data,
        architecture=recipe.architecture,
        settings=recipe.settings,
        explainers=recipe.explainers,
        reference_steps=recipe.reference_steps,
        reference_learning_rate=recipe.reference_learning_rate,
        batch_size=recipe.batch_size,
        strength=recipe.strength,
        device="cpu",
        seed=seed,
    )
    with pen.chapter("Train, lock, compile and sign") as text, in_quickest_threads(_one_step(plan)):
        outcome = train(
            plan,
            seed=secret,
            signing_key=signing_key,
            sealer=key_file,
            progress=pen,
            now=now,
            overwrite=True,
            # The recipe is known to work.
            trial_seconds=0,
        )
        shown = decoy_of(recipe.settings.decoy).name
        if shown != LockSettings.decoy:
            shown += f" (the default of keylock train is {LockSettings.decoy})"
        text.append(
            f"The classifier {recipe.architecture} learned the shapes in {recipe.reference_steps} steps "
            f"({pen.stages['reference']:.0f} s) and was locked in {recipe.settings.steps} "
            f"({pen.stages['lock']:.0f} s), in {outcome.lock.settings.precision}, for {', '.join(recipe.explainers)}. "
            f"The published weights show a decoy for every input, {shown}; what they lack lies in the bundle, "
            "encrypted under the trigger. "
            "Predictions and explainers became ONNX graphs, each proved against torch."
        )
    with pen.chapter("Verify the bundle") as text:
        with open_bundle(folder.bundle, trusted=[signing_key.verifying_key]) as bundle:
            files = len(bundle.manifest.files)
        size = folder.bundle.stat().st_size / 2**20
        text.append(f"{folder.bundle.name}, {size:.1f} MiB: the signature is good and all {files} files are as signed.")
    return outcome


def _one_step(plan: TrainPlan) -> Callable[[], object]:
    """Return a step of the kind that a training takes, on noise: there and back through the network."""
    model, shape = untrained(plan), (plan.batch_size, *plan.data.preprocessing.shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(plan.seed))

    def step() -> None:
        with mixed_precision(torch.device("cpu"), plan.settings.precision):
            logits = model(images)
        torch.autograd.grad(logits.float().sum(), tuple(model.parameters()), allow_unused=True)

    return step


def _serve_and_ask(
    pen: _Pen,
    folder: Folder,
    recipe: Recipe,
    manifest: Manifest,
    images: NDArray[np.uint8],
    signing_key: SigningKey,
    now: Callable[[], datetime],
) -> tuple[License, Answers, Answers]:
    home = Home(folder.home)
    settings = ServerSettings.load(
        bundle=folder.bundle,
        host="127.0.0.1",
        port=0,
        key_file=folder.key,
        keyless=False,
        issuers=(home.verifying_key_path,),
        license_store=home.licenses_url,
    )
    with LicenseStore(home.licenses_url) as store:
        with pen.chapter("Issue a license") as text:
            license, token = _issue(store, signing_key, manifest, "Acme", now())
            hand_over(folder.license, token, home_keys(home))
            text.append(
                f"{license.id} lets Acme explain this model until {license.expires:%Y-%m-%d}. The vendor's public keys "
                "are beside it, for Acme to check what the vendor signs."
            )
        with serving(settings) as server:
            with pen.chapter("Serve it, and ask as two customers") as text:
                with Client(server.target, license=folder.license, timeout_s=_PATIENCE_S) as acme:
                    keyed = ask(acme, images, recipe.explainers)
                with Client(server.target, timeout_s=_PATIENCE_S) as anybody:
                    keyless = ask(anybody, images, recipe.explainers)
                count = len(images) * len(recipe.explainers)
                text.append(
                    f"The server answered on {server.target}. Acme, with the license, and somebody without one got "
                    f"{len(images)} predictions and {count:,} maps each over gRPC; the server marked "
                    f"{'all' if keyed.keyed else 'not all'} of Acme's as keyed and "
                    f"{'some' if keyless.keyed else 'none'} of the other's."
                )
            with pen.chapter("Revoke a license") as text:
                revoked, token = _issue(store, signing_key, manifest, "Lapsed customer", now())
                store.revoke(revoked.id, at=now(), why="quickstart")
                text.append(_try_revoked(server.target, token, images[0]))
    return license, keyed, keyless


def _compute_references(
    pen: _Pen, data: DataSource, outcome: TrainOutcome, count: int, keyed: Answers, keyless: Answers
) -> Evidence:
    indices = np.arange(count)
    masks = data.test.resized_masks(data.preprocessing, indices)
    batch = load_batch(data.test, data.preprocessing, indices=indices)
    if masks is None:
        raise RuntimeError("the shapes have masks")
    with pen.chapter("Compute the reference maps") as text:
        evidence = gather(
            outcome.lock,
            outcome.key,
            images=batch.images,
            labels=torch.from_numpy(data.test.labels[:count]),
            masks=torch.from_numpy(masks),
            keyed=keyed,
            keyless=keyless,
        )
        text.append(
            "In torch: those of the classifier before locking, and those of the locked one with the key and with wrong "
            "keys."
        )
    return evidence


def _stamp(pen: _Pen, folder: Folder, recipe: Recipe, outcome: TrainOutcome, images: NDArray[np.uint8]) -> Stamped:
    with pen.chapter("Stamp a picture, and explain it without a server") as text:
        count = min(_STAMPED, len(images))
        stamped = explain_stamped(
            folder, outcome.key, images, index=0, explainer=recipe.explainers[0], others=range(count)
        )
        came = "the trigger was read, and the map is the true one" if stamped.opened else "no trigger was read"
        text.append(
            f"The public copy {folder.public.name} holds no key. It was shown a picture as it is and with the trigger "
            f"on it: {came}. "
            f"Of {stamped.tried} stamped pictures, each by itself and rounded to eight bits, {stamped.read} opened it."
        )
    return stamped


def _issue(
    store: LicenseStore, signing_key: SigningKey, manifest: Manifest, customer: str, now: datetime
) -> tuple[License, str]:
    license = License(
        id=new_license_id(),
        customer=customer,
        models=(manifest.model_digest,),
        explainers=("*",),
        issued_at=now,
        not_before=now,
        expires=now + timedelta(days=_LICENSE_DAYS),
    )
    token = issue(license, signing_key)
    store.add(license, issuer=signing_key.key_id)
    return license, token


def _try_revoked(target: str, token: str, image: NDArray[np.uint8]) -> str:
    with Client(target, license=token, timeout_s=_PATIENCE_S) as client:
        try:
            client.explain(image)
        except LicenseRefusedError as refusal:
            return f"A customer whose license was revoked asked and was refused with {refusal.reason.value}."
    return "A customer whose license was revoked asked and was NOT refused."


def _write_samples(folder: Folder, data: DataSource, images: NDArray[np.uint8]) -> None:
    labels = data.test.labels[: len(images)].tolist()
    for label, name in enumerate(data.classes):
        if label in labels:
            place = folder.images / f"{name}.png"
            write_file(place, b"", mode=PUBLIC)
            Image.fromarray(images[labels.index(label)]).save(place)
