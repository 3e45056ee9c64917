"""What a server takes of one request, so that what is too large is refused here: before it is copied or encoded."""

from dataclasses import dataclass

from keylock_client.errors import TooLargeError

__all__ = ["RequestLimits"]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a server takes of one request at most; the values here are those of a server that is not set otherwise.

    Attributes:
        images: Images in a request; the client cuts longer lists.
        image_bytes: Bytes of an image file.
        image_pixels: Width times height of an image.
        message_bytes: Bytes of a request.
    """

    images: int = 32
    image_bytes: int = 32 * 2**20
    image_pixels: int = 50_000_000
    message_bytes: int = 64 * 2**20

    def check_file(self, size: int, name: str) -> None:
        """Return if a file of so many bytes is taken, or raise `TooLargeError`."""
        most = min(self.image_bytes, self.message_bytes)
        if size > most:
            raise TooLargeError(
                f"{name} has more than {most:,} bytes and the server takes no more: send a smaller file"
            )

    def check_pixels(self, width: int, height: int, name: str) -> None:
        """Return if an image of this size is taken, or raise `TooLargeError`."""
        if width * height > self.image_pixels:
            raise TooLargeError(
                f"{name} has {width} x {height} pixels and the server takes at most {self.image_pixels:,}: "
                "scale it down"
            )

    def check_tensor(self, shape: tuple[int, ...], name: str) -> None:
        """Return if a preprocessed image of this shape is taken, or raise `TooLargeError`."""
        size = 4
        for side in shape:
            size *= side
        if size > self.message_bytes:
            raise TooLargeError(
                f"{name} is an array of shape {shape}, {size:,} bytes as float32, and the server takes at most "
                f"{self.message_bytes:,}: give the size that the model takes"
            )
