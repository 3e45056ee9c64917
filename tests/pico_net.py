"""A network as small as an architecture by name can be, for tests that train and compile several times."""

from torch import Tensor, nn

__all__ = ["PicoNet"]


class PicoNet(nn.Module):
    """Two convolutions, for `keylock.models.registry`."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act2 = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act2(self.conv2(self.act1(self.conv1(images)))).mean(dim=(2, 3)))
        return logits
