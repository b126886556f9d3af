"""Two renderings of one row, the database's JSON and Freshet's, brought to one value each and compared.

A column's kind says what both texts mean. A column that is not listed means what its JSON says.
"""

import json
import re
import struct
from datetime import datetime, timezone
from decimal import Decimal

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def micros(text):
    """Microseconds since 1970 of an ISO timestamp, taken as UTC where it says nothing."""
    fraction = re.search(r"\.(\d+)", text)
    if fraction:
        text = text.replace(fraction[0], "." + fraction[1].ljust(6, "0")[:6])
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    since = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)) - EPOCH
    return (since.days * 86400 + since.seconds) * 10**6 + since.microseconds


def date(text):
    """A year of five digits has a sign in ISO 8601, which Freshet writes."""
    return text.removeprefix("+")


def time_of_day(text):
    """Microseconds since midnight in UTC of `08:00:00`, `08:00:00.5+02`, `06:00:00Z`."""
    parts = re.fullmatch(r"(\d+):(\d+):(\d+)(\.\d+)?(?:Z|([+-]\d+)(?::?(\d\d))?)?", text)
    hours, minutes, seconds = (int(p) for p in parts.group(1, 2, 3))
    offset = int(parts[5] or 0) * 60 + int(parts[6] or 0)
    whole = (hours * 3600 + minutes * 60 + seconds - offset * 60) % 86400
    return whole * 10**6 + int(Decimal(parts[4] or 0) * 10**6)


def elapsed(text):
    """Microseconds of an ISO 8601 duration, whose months Debezium takes for a twelfth of 365.25 days each; or of MariaDB's `-838:59:59`."""
    if ":" in text:
        hours, minutes, seconds = text.lstrip("-").split(":")
        return int((int(hours) * 3600 + int(minutes) * 60 + Decimal(seconds)) * 10**6) * (-1 if text.startswith("-") else 1)
    parts = re.fullmatch(r"(-?)P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?[\d.]+)S)?)?", text)
    years, months, days, hours, minutes, seconds = (Decimal(p or 0) for p in parts.groups()[1:])
    days += (years * 12 + months) * Decimal("365.25") / 12
    return int((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 10**6) * (-1 if parts[1] else 1)


def real(value):
    """The 32 bits: both sides print the shortest text that names them. JSON has no NaN: Freshet's answers have null for it."""
    return None if value == "NaN" else struct.pack("<f", float(value))


def six_digits(value):
    """A float of MariaDB, which prints six digits to whoever asks for a snapshot; its log has all."""
    return f"{float(value):.5e}"


def double(value):
    return None if value == "NaN" else struct.pack("<d", float(value))


def decimal(value):
    """Connect's decimals have no NaN: Debezium writes null for it."""
    return None if value == "NaN" else Decimal(str(value).replace("$", "").replace(",", ""))


def document(value):
    """A JSON document, as text or as the object itself."""
    return read(value) if isinstance(value, str) else value


def octets(text):
    return bytes.fromhex(text.removeprefix("\\x"))


def bits(text):
    """The number of some bits: `10110001` from PostgreSQL, `=177` from MariaDB's query; little-endian bytes in hexadecimal from Freshet."""
    if text.startswith("="):
        return int(text[1:])
    return int(text, 2) if len(text) == 8 else int.from_bytes(bytes.fromhex(text), "little")


def one_bit(value):
    return {True: True, False: False, "1": True, "0": False}[value]


# Both shops' columns; a name means the same in both.
KINDS = {
    "list_price": decimal, "cost": decimal, "any_number": decimal, "cash": decimal, "weight": real, "height": double,
    "sell_start": micros, "sell_end": micros, "updated_at": micros, "updated_ms": micros, "reviewed_at": micros, "made_on": date,
    "opens": time_of_day, "opens_tz": time_of_day, "warranty": elapsed, "attrs": document, "thumb": octets, "flags": bits,
    "one_bit": one_bit,
    "big": decimal, "price": decimal, "wide": decimal, "f": six_digits, "d": double, "at": micros, "ts": micros, "t1": elapsed, "b1": one_bit, "b10": bits,
    "j": document, "bin": octets, "bl": octets,
}


def read(text):
    """JSON without a loss: decimals keep their digits, and -0 its sign."""
    return json.loads(text, parse_float=Decimal, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))


def value(column, raw):
    return None if raw is None else KINDS.get(column, lambda same: same)(raw)


def differences(expected, found, limit=8):
    """What differs between two maps from key to row, in words; empty when nothing does."""
    out = [f"row {key} is missing" for key in sorted(expected.keys() - found.keys())]
    out += [f"row {key} should not be there" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        want, got = expected[key], found[key]
        if want.keys() != got.keys():
            out.append(f"row {key} has other columns: {sorted(want.keys() ^ got.keys())}")
            continue
        for column in want:
            if value(column, want[column]) != value(column, got[column]):
                out.append(f"row {key}, {column}: the database has {want[column]!r}, the index {got[column]!r}")
    return out[:limit] + ([f"and {len(out) - limit} more"] if len(out) > limit else [])
