"""The first message of a WireGuard handshake with a chosen time stamp.

The clock of a host may be ahead, and behind after its next boot. Its handshake then has an older time stamp than
its peer has seen. The Go program that replaces the kernel's WireGuard uses the clock of the test machine. So this
message gives the later time stamp to the peer instead. Sources: the WireGuard paper, 5.4.2, RFC 7748 and RFC 8439.
"""

from __future__ import annotations

import base64
import hmac
import os
import struct
from hashlib import blake2s

P25519 = 2**255 - 19
BASE_POINT = (9).to_bytes(32, "little")
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
TAI64_EPOCH = 2**62 + 10


def x25519(scalar: bytes, point: bytes) -> bytes:
    """Return the product of ``scalar`` and ``point`` by the Montgomery ladder (RFC 7748, section 5)."""
    bits = bytearray(scalar)
    bits[0] &= 248
    bits[31] = bits[31] & 127 | 64
    k = int.from_bytes(bits, "little")
    u = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P25519, b * b % P25519, d * a % P25519, c * b % P25519
        e = aa - bb
        x3, z3 = pow(da + cb, 2, P25519), u * pow(da - cb, 2, P25519) % P25519
        x2, z2 = aa * bb % P25519, e * (aa + 121665 * e) % P25519
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P25519 - 2, P25519) % P25519).to_bytes(32, "little")


def _block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """Return one block of ChaCha20 (RFC 8439, 2.3)."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
    start += struct.unpack("<3I", nonce)
    s = [*start]

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            v = s[z] ^ s[x]
            s[z] = (v << turn | v >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start, strict=True)))


def seal(key: bytes, text: bytes, further: bytes) -> bytes:
    """Encrypt by ChaCha20-Poly1305 with nonce 0 (RFC 8439, 2.8); ``text`` is at most one block."""
    nonce = bytes(12)
    stream = _block(key, 1, nonce)
    cipher = bytes(x ^ y for x, y in zip(text, stream, strict=False))
    one_time = _block(key, 0, nonce)[:32]
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    data = further + bytes(-len(further) % 16) + cipher + bytes(-len(cipher) % 16)
    data += struct.pack("<QQ", len(further), len(cipher))
    total = 0
    for i in range(0, len(data), 16):
        total = (total + int.from_bytes(data[i : i + 16] + b"\1", "little")) * r % (2**130 - 5)
    tag = (total + int.from_bytes(one_time[16:], "little")) % 2**128
    return cipher + tag.to_bytes(16, "little")


def _hash(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def _derive(chain: bytes, data: bytes, count: int) -> list[bytes]:
    """Derive ``count`` keys by the KDF of WireGuard: HKDF over HMAC-BLAKE2s."""
    secret = hmac.digest(chain, data, "blake2s")
    outputs: list[bytes] = []
    for number in range(1, count + 1):
        last = outputs[-1] if outputs else b""
        outputs.append(hmac.digest(secret, last + bytes([number]), "blake2s"))
    return outputs


def initiation(private_key: str, peer_public_key: str, when: float) -> bytes:
    """Return a handshake initiation at the Unix time ``when``. The keys have the format of `wg`."""
    own, peer = base64.b64decode(private_key), base64.b64decode(peer_public_key)
    ephemeral = os.urandom(32)
    shown, public = x25519(ephemeral, BASE_POINT), x25519(own, BASE_POINT)
    chain = _hash(CONSTRUCTION)
    state = _hash(_hash(_hash(chain, IDENTIFIER), peer), shown)
    (chain,) = _derive(chain, shown, 1)
    chain, key = _derive(chain, x25519(ephemeral, peer), 2)
    static = seal(key, public, state)
    state = _hash(state, static)
    chain, key = _derive(chain, x25519(own, peer), 2)
    stamp = seal(key, struct.pack(">QI", TAI64_EPOCH + int(when), int(when % 1 * 1e9)), state)
    message = struct.pack("<I4s", 1, os.urandom(4)) + shown + static + stamp
    mac = blake2s(message, key=_hash(b"mac1----", peer), digest_size=16).digest()
    return message + mac + bytes(16)
