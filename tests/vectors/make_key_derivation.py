"""Prints the known-answer vectors of the key derivation with `hashlib` and `hmac` alone: no code of keylock runs.

Use: python tests/vectors/make_key_derivation.py > tests/vectors/key_derivation.json
"""

import hashlib
import hmac
import json
import struct
import sys

SEEDS = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "000102030405060708090A0B0C0D0E0F101112131415161718191a1b1c1d1e1f",
    "correct horse battery staple",
    "  Schl\u00fcssel, der \u00f6ffnet \n",
]
IMAGENET_STD = [0.229, 0.224, 0.225]
IMAGES = [
    {"shape": [3, 32, 32], "strength": [8, 255], "std": [1.0, 1.0, 1.0], "tile": 8},
    {"shape": [3, 20, 13], "strength": [8, 255], "std": IMAGENET_STD, "tile": 8},
    {"shape": [1, 5, 7], "strength": [16, 255], "std": [0.3081], "tile": 3},
]


def secret_of(text: str) -> bytes:
    """Returns the 32 bytes a seed text stands for."""
    text = text.strip()
    if len(text) == 64:
        return bytes.fromhex(text)
    return hashlib.scrypt(text.encode("utf-8"), salt=b"keylock/v1/text-seed", n=32768, r=8, p=3, maxmem=2**27, dklen=32)


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, written out."""
    pseudo_random_key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(pseudo_random_key, block + info + bytes([counter]), hashlib.sha256).digest()
        output, counter = output + block, counter + 1
    return output[:length]


def offsets(secret: bytes, image: dict) -> tuple[str, list[float]]:
    """Returns the tile's signs in C order as a text of + and -, and the whole offset in C order."""
    (channels, height, width), tile = image["shape"], image["tile"]
    count = channels * tile * tile
    stream = hkdf(secret, b"keylock/v1/key-pattern", (count + 7) // 8)
    signs = [1 if stream[i // 8] >> (7 - i % 8) & 1 else -1 for i in range(count)]
    strength = image["strength"][0] / image["strength"][1]
    values = []
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                sign = signs[(c * tile + y % tile) * tile + x % tile]
                values.append(sign * (strength / image["std"][c]))
    return "".join("+" if sign > 0 else "-" for sign in signs), values


def main() -> None:
    """Prints the vectors as JSON."""
    vectors = []
    for text in SEEDS:
        secret = secret_of(text)
        keys = []
        for image in IMAGES:
            signs, values = offsets(secret, image)
            packed = b"".join(struct.pack("<f", value) for value in values)
            first = [struct.unpack("<f", packed[4 * i : 4 * i + 4])[0] for i in range(4)]
            keys.append(
                {
                    **image,
                    "tile_signs": signs,
                    "first_values": first,
                    "offset_sha256": hashlib.sha256(packed).hexdigest(),
                }
            )
        vectors.append(
            {
                "seed_text": text,
                "secret": secret.hex(),
                "id": hkdf(secret, b"keylock/v1/key-id", 8).hex(),
                "derived": {"purpose": "example", "hex": hkdf(secret, b"keylock/v1/example", 40).hex()},
                "keys": keys,
            }
        )
    json.dump({"derivation": "hkdf-sha256/sign-tile/v1", "vectors": vectors}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
