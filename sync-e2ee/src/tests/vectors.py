"""Computes the known answers of vectors.rs without any code of this crate.

Needs pyca/cryptography 46+ (HPKE) and blake3. The HPKE seals are randomized: a run gives others that open as well.
"""

import hashlib
import hmac
import struct

import blake3
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
PRIME = 2**255 - 19


def show(name, value):
    print(f"{name:16} {value.hex()}")


def slip10(seed, path):
    i = hmac.digest(b"ed25519 seed", seed, "sha512")
    for index in path:
        i = hmac.digest(i[32:], b"\0" + i[:32] + struct.pack(">I", 0x80000000 | index), "sha512")
    return i[:32]


def hkdf(ikm, info, length=32, salt=b""):
    prk = hmac.digest(salt or bytes(32), ikm, "sha256")
    out, block, n = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([n]), "sha256")
        out, n = out + block, n + 1
    return out[:length]


def hchacha20(key, nonce):
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def quarter(a, b, c, d):
        for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] ^= state[x]
            state[z] = (state[z] << bits | state[z] >> (32 - bits)) & 0xFFFFFFFF

    for _ in range(10):
        for column in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(*column)
        for diagonal in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(*diagonal)
    return struct.pack("<8I", *state[:4], *state[12:])


def xchacha(key, nonce, aad, plaintext):
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plaintext, aad)


def montgomery(edwards):
    y = int.from_bytes(edwards, "little") & (2**255 - 1)
    return ((1 + y) * pow(1 - y, -1, PRIME) % PRIME).to_bytes(32, "little")


def hpke_seal(public, info, plaintext):
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    return suite.encrypt(plaintext, x25519.X25519PublicKey.from_public_bytes(public), info)


def field(number, value):
    length = len(value)
    varint = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + varint + value


# BIP-39, then SLIP-0010 at m/44'/18519'/0'.
phrase = "abandon " * 23 + "art"
seed = hashlib.pbkdf2_hmac("sha512", phrase.encode(), b"mnemonic", 2048)
secret = slip10(seed, [44, 18519, 0])
account = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(*RAW)
show("seed", seed)
show("account secret", secret)
show("account", account)

# The keys of a space: 01…, 02…, 03….
name, read, history = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
profile = x25519.X25519PrivateKey.from_private_bytes(hkdf(read, b"headwater/profile/v1")).public_key().public_bytes(*RAW)
show("key id", blake3.blake3(read, derive_key_context="headwater/epoch-id/v1").digest())
show("history id", blake3.blake3(history, derive_key_context="headwater/history-id/v1").digest())
show("profile public", profile)
show("derived keys", hkdf(secret, b"headwater/derived-space/v1" + b"account", 96))

space, tree, epoch = bytes([4]) * 32, bytes([5]) * 32, struct.pack(">I", 7)
info = b"headwater/seal/v1" + space + epoch
show("seal", hpke_seal(montgomery(account), info + b"keys" + account, name + read + history))
root_info = b"headwater/seal/v1" + bytes(32) + bytes(4)
show("root seal", hpke_seal(montgomery(account), root_info + b"keys" + account, name + read + history))
show("profile", hpke_seal(profile, info + b"profile" + profile, b"Alice"))

# Content of a tree, and names.
parts = [b"note", b"shopping"]
tagged = b"".join(struct.pack(">Q", len(p)) + p for p in parts)
show("name tag", blake3.blake3(tagged, key=name).digest())
envelope = b"".join(field(n, v) for n, v in enumerate([b"note", b"shopping", b"text", b"milk"], 1))
nonce = bytes(range(24))
content_key = hkdf(read, b"headwater/content/v1" + tree)
show("content", xchacha(content_key, nonce, space + tree + epoch + account + b"\0", envelope))

# The chain from epoch 8, whose history key is 06…, back to epoch 7.
chain_aad = b"headwater/chain-key/v1" + space + struct.pack(">I", 8)
show("chain", xchacha(bytes([6]) * 32, nonce, chain_aad, read + history))

# A vault under the key file 09…, with device seed 0a… and local key 0b….
salt = bytes([8]) * 16
header = b"HWVAULT" + b"\1\2" + bytes(12) + salt + nonce
secrets = field(1, phrase.encode()) + field(2, bytes([10]) * 32) + field(3, bytes([11]) * 32)
vault = header + xchacha(hkdf(bytes([9]) * 32, b"headwater/vault/v1", salt=salt), nonce, header, secrets)
vault += blake3.blake3(vault, derive_key_context="headwater/vault-sum/v1").digest()
show("vault", vault)

# The client's own rows.
local = bytes([11]) * 32
row_key = blake3.blake3(local, derive_key_context="headwater/local-row/v1").digest()
tag_key = blake3.blake3(local, derive_key_context="headwater/local-tag/v1").digest()
show("row", nonce + xchacha(row_key, nonce, b"objects/1", b"milk"))
show("tag", blake3.blake3(struct.pack(">Q", 4) + b"note" + b"shopping", key=tag_key).digest()[:16])
