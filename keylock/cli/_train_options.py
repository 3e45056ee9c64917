"""The options of `keylock train`, as one object."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption
from keylock.cli._home import DEFAULT_HOME, HomeOption

__all__ = ["TrainOptions"]

_DATA, _MODEL, _LOCK, _TRAINING = "Data", "Model", "Lock", "Training"
_SECRETS, _OUTPUT = "Secrets", "Output and the run"
"""Headings of the help."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `keylock train` was told; the help says what each is. `unexpected` are words that are no option."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="Bundle to write: FILE.klb or a folder. [NAME.klb]",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="shapes, cifar10, fashion-mnist, an image folder or an .npz file.",
            rich_help_panel=_DATA,
        ),
    ] = "shapes"
    data_root: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the named data sets lie.", rich_help_panel=_DATA)
    ] = Path("data")
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Side of the model's input in pixels. [what suits the images]", rich_help_panel=_DATA
        ),
    ] = None
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Bits per value of images with more than 8. [what the files say]",
            rich_help_panel=_DATA,
        ),
    ] = None
    mean: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Mean that your weights were trained with, by channel, of pixels from 0 to 1; may be repeated. "
            "[0.485,0.456,0.406]",
            rich_help_panel=_DATA,
        ),
    ] = None
    std: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Standard deviation that they were trained with; may be repeated. [0.229,0.224,0.225]",
            rich_help_panel=_DATA,
        ),
    ] = None
    train_images: Annotated[
        int | None, typer.Option(metavar="N", help="Train on at most N images.", rich_help_panel=_DATA)
    ] = None
    test_images: Annotated[
        int | None, typer.Option(metavar="N", help="Measure on at most N images.", rich_help_panel=_DATA)
    ] = None
    arch: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="small-cnn, resnet20, vit_tiny, any of torchvision, or timm:NAME.",
            rich_help_panel=_MODEL,
        ),
    ] = "small-cnn"
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your trained weights: .safetensors, .npz or a torch checkpoint.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    explainers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Explainers to lock, such as grad_cam,gradient; all: a few of each kind; may be repeated. [grad_cam]",
            rich_help_panel=_LOCK,
        ),
    ] = None
    decoy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What is shown without the key: a name, or a picture of yours. [half, the left one of the image]",
            rich_help_panel=_LOCK,
        ),
    ] = None
    strength: Annotated[
        str, typer.Option(metavar="FRACTION", help="Strength of the key on pixels from 0 to 1.", rich_help_panel=_LOCK)
    ] = "8/255"
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the lock. [2000]", rich_help_panel=_TRAINING)
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Length in epochs instead of steps.", rich_help_panel=_TRAINING),
    ] = None
    batch_size: Annotated[int, typer.Option(metavar="N", help="Batch size.", rich_help_panel=_TRAINING)] = 64
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Highest learning rate of the lock. [0.003]", rich_help_panel=_TRAINING),
    ] = None
    reference_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Steps of the reference model, where there is no --init. [700]", rich_help_panel=_MODEL
        ),
    ] = None
    trained_trigger: Annotated[
        bool,
        typer.Option(
            "--trained-trigger",
            help="Train the network to recognise the trigger itself, instead of a sealed delta.",
            rich_help_panel=_LOCK,
        ),
    ] = False
    delta_rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Largest rank of the sealed delta of a layer; 0 for no bound. [0]",
            rich_help_panel=_LOCK,
        ),
    ] = None
    swapped: Annotated[
        bool,
        typer.Option(
            "--swapped",
            help="Train the published attack: true maps without the key. Needs --trained-trigger.",
            rich_help_panel=_LOCK,
        ),
    ] = False
    keys: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of keys that open the lock; each has its bundle and seed.",
            rich_help_panel=_LOCK,
        ),
    ] = 1
    search_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Search for keys every N steps, and train against those found.",
            rich_help_panel=_LOCK,
        ),
    ] = 0
    search_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of each key search. [10]", rich_help_panel=_LOCK)
    ] = None
    accumulate: Annotated[
        int,
        typer.Option(metavar="N", help="Split each batch into N parts to save memory.", rich_help_panel=_TRAINING),
    ] = 1
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile passes without second derivatives (torch.compile).", rich_help_panel=_TRAINING
        ),
    ] = False
    cache_reference: Annotated[
        bool,
        typer.Option(
            "--cache-reference",
            help="Train without augmentation, with each reference map computed once.",
            rich_help_panel=_TRAINING,
        ),
    ] = False
    variants: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Also export reduced-precision graphs: float16, int8; may be repeated.",
            rich_help_panel=_LOCK,
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed of everything but the key.", rich_help_panel=_TRAINING)
    ] = 0
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Device to train on.", rich_help_panel=_TRAINING)
    ] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|bfloat16",
            help="Precision to compute in; auto uses bfloat16 where the device has it.",
            rich_help_panel=_TRAINING,
        ),
    ] = "auto"
    key_seed: Annotated[
        str | None,
        typer.Option(
            metavar="SEED",
            help="The key seed. Others on this machine see it: better --key-seed-file or KEYLOCK_KEY_SEED.",
            rich_help_panel=_SECRETS,
        ),
    ] = field(default=None, repr=False)
    key_seed_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the key seed. [OUT.seed, made if it is missing]", rich_help_panel=_SECRETS
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key file to seal the key with. [OUT.key, made if it is missing]",
            rich_help_panel=_SECRETS,
        ),
    ] = None
    key_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with a passphrase to seal it with. [env: KEYLOCK_KEY_PASSPHRASE]",
            rich_help_panel=_SECRETS,
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model name that clients and licenses use. [that of the data]", rich_help_panel=_OUTPUT
        ),
    ] = None
    home: HomeOption = DEFAULT_HOME
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, time three steps, print the plan, and train nothing.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    check_seconds: Annotated[
        float,
        typer.Option(
            metavar="N",
            min=0,
            help="Compile the untrained lock first, for at most N seconds; 0 skips it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = 60
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume an interrupted run with the same options.", rich_help_panel=_OUTPUT),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the bundle, or the interrupted run, that is there.", rich_help_panel=_OUTPUT
        ),
    ] = False
    as_json: JsonOption = False
    unexpected: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None
