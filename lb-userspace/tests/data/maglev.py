#!/usr/bin/env python3
"""Golden tables for the tests of lb-userspace/src/balance: Maglev (NSDI 2016, section 3.4) written from the paper's text, whole permutations and
all; weighted turns as a sorted list of exact fractions; the next candidate by logarithms of 60 digits. usage: maglev.py > maglev.json"""
import hashlib, ipaddress, json
from decimal import Decimal, getcontext
from fractions import Fraction

getcontext().prec = 60
MASK = 2**64 - 1

def keys(seed, address):
    host, port = address.rsplit(":", 1)
    ip = ipaddress.ip_address(host.strip("[]"))
    data = b"weir backend 1" + seed.encode() + bytes([ip.version]) + ip.packed + int(port).to_bytes(2, "big")
    digest = hashlib.sha256(data).digest()
    return [int.from_bytes(digest[i:i + 8], "little") for i in (0, 8, 16)]

def order(address):
    host, port = address.rsplit(":", 1)
    ip = ipaddress.ip_address(host.strip("[]"))
    return (ip.version, int(ip), int(port))

def table(seed, size, backends):
    names = sorted((b["address"] for b in backends if b["weight"]), key=order)
    weight = {b["address"]: b["weight"] for b in backends}
    permutation = {}
    for name in names:
        offset, skip = keys(seed, name)[0] % size, keys(seed, name)[1] % (size - 1) + 1
        permutation[name] = [(offset + j * skip) % size for j in range(size)]
    turns = sorted((Fraction(2 * k - 1, weight[name]), at, name)
                   for at, name in enumerate(names) for k in range(1, size + 1))
    entry = [None] * size
    for _, _, name in turns[:size]:
        entry[next(slot for slot in permutation[name] if entry[slot] is None)] = name
    return entry

def fmix64(x):  # MurmurHash3's finaliser, from its published constants
    x ^= x >> 33
    x = x * 0xff51afd7ed558ccd & MASK
    x ^= x >> 33
    x = x * 0xc4ceb9fe1a85ec53 & MASK
    return x ^ x >> 33

def candidate(seed, slot, backends, down):
    salt = fmix64(slot ^ 0x9e3779b97f4a7c15)
    def score(b):
        u = (Decimal(fmix64(keys(seed, b["address"])[2] ^ salt)) + 1) / Decimal(2**64)
        return -Decimal(b["weight"]) / u.ln() if u != 1 else Decimal("Infinity")
    living = [b for b in backends if b["weight"] and b["address"] not in down]
    return max(living, key=score)["address"] if living else None

def case(name, seed, size, weights, address, downs):
    backends = [{"address": address.format(n), "weight": w} for n, w in enumerate(weights, 1)]
    entry = table(seed, size, backends)
    following = []
    for which in downs:
        down = [backends[n]["address"] for n in which]
        owners = [candidate(seed, slot, backends, down) if owner in down else owner for slot, owner in enumerate(entry)]
        following.append({"down": down, "owners": owners})
    return {"name": name, "seed": seed, "size": size, "backends": backends, "table": entry, "next": following}

print(json.dumps([
    case("three of one weight", "0123456789abcdef", 101, [1, 1, 1], "10.2.0.{}:8080", [[0], [0, 2], [0, 1, 2]]),
    case("seven of one weight", "weir weir weir w", 251, [1] * 7, "192.0.2.{}:80", [[3]]),
    case("three weights", "0123456789abcdef", 251, [1, 2, 5], "10.2.0.{}:8080", [[2], [1]]),
    case("one without weight, many others", "fedcba9876543210", 509, [3, 0, 7, 1, 1, 10], "10.9.8.{}:65535", [[5], [0, 2]]),
    case("six in IPv6", "fedcba9876543210", 251, [4, 1, 1, 1, 1, 2], "[2001:db8::{:x}]:443", [[0], [4]]),
], separators=(",", ":")).replace('},{"name"', '},\n{"name"'))
