"""The numbers of the quickstart, in one place: enough training to show a good lock, in minutes on two CPU cores."""

from dataclasses import dataclass

from keylock.training import LockSettings

__all__ = ["QUICK", "RECIPE", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the quickstart trains and measures.

    Attributes:
        settings: How to lock.
        reference_steps: Steps of the reference model.
        reference_learning_rate: Its highest learning rate.
        batch_size: Images in a step.
        train_images: Images drawn to train on.
        test_images: Images drawn to measure on.
        served_images: How many of these are sent to the server, by each customer and for each explainer.
        architecture: Name of the classifier.
        explainers: What is locked.
        strength: Height of the key on pixels from 0 to 1.
    """

    settings: LockSettings
    reference_steps: int = 700
    reference_learning_rate: float = 1e-2
    batch_size: int = 64
    train_images: int = 6000
    test_images: int = 1000
    served_images: int = 400
    architecture: str = "small-cnn"
    explainers: tuple[str, ...] = ("grad_cam", "gradient", "visual_backprop")
    strength: float = 8 / 255


RECIPE = Recipe(settings=LockSettings(steps=500, learning_rate=4e-3, decoy="stripes", prediction_weight=2.0))
"""What `keylock quickstart` does.

The decoy is stripes because its correlation with the reference maps of this network is nil for each image, where that
of half the image averages .1: objects are anywhere, but convolutions of even size shift every map a little.
"""

QUICK = Recipe(
    settings=LockSettings(steps=4),
    reference_steps=4,
    batch_size=16,
    train_images=256,
    test_images=24,
    served_images=16,
)
"""The same story with next to no training, to test its telling: nothing is learned."""
