"""Prints the known-answer vectors of the trigger's secret with `hashlib` and `hmac` alone: no code of keylock runs.

Use: python tests/vectors/make_trigger_secret.py > tests/vectors/trigger_secret.json
"""

import hashlib
import hmac
import json
import sys

SHAPES = [(3, 8), (1, 12), (3, 7), (1, 16)]


def signs_of(channels: int, tile: int) -> list[int]:
    """Returns signs that anybody can make again: the bits of SHA-256 of a counter, most significant first."""
    count, bits, counter = channels * tile * tile, [], 0
    while len(bits) < count:
        for byte in hashlib.sha256(f"{channels}x{tile}#{counter}".encode("ascii")).digest():
            bits += [byte >> (7 - position) & 1 for position in range(8)]
        counter += 1
    return [1 if bit else -1 for bit in bits[:count]]


def secret_of(signs: list[int], channels: int, tile: int) -> bytes:
    """Returns 32 bytes: RFC 5869 with SHA-256 and no salt, written out, over the packed signs."""
    packed = bytearray(-(-len(signs) // 8))
    for position, sign in enumerate(signs):
        packed[position // 8] |= (sign > 0) << (7 - position % 8)
    pseudo_random_key = hmac.new(bytes(32), packed, hashlib.sha256).digest()
    info = f"keylock/v1/trigger/{channels}x{tile}x{tile}".encode("ascii")
    return hmac.new(pseudo_random_key, info + b"\x01", hashlib.sha256).digest()


def main() -> None:
    """Prints the vectors."""
    vectors = []
    for channels, tile in SHAPES:
        signs = signs_of(channels, tile)
        text = "".join("+" if sign > 0 else "-" for sign in signs)
        secret = secret_of(signs, channels, tile).hex()
        vectors.append({"channels": channels, "tile": tile, "signs": text, "secret": secret})
    sys.stdout.write(json.dumps({"vectors": vectors}, indent=2) + "\n")


if __name__ == "__main__":
    main()
