#!/usr/bin/env python3
"""Asks a running Kafka Connect whether the connectors of compose/connect are right: every value valid, no key that nobody knows.

Debezium does not mind a key that it does not know, so a misspelt one would pass unseen: each key has to be among those that the connector's
class names, or in the classes of what it is handed on to; those of the database's driver alone are not looked at. A database that cannot be
reached is no fault of the file.

    connectors.py [CONNECT_URL]        exit 1, and what is wrong by file and key
"""

import json
import pathlib
import re
import sys
import zipfile

from peers import HOST, PORTS, cache_folder, http

FILES = sorted((pathlib.Path(__file__).resolve().parent.parent.parent / "compose/connect").glob("*.json"))
# Keys that the connector's class hands on unseen, and whose names the classes of these files of the peers have to know: those of the converters, of
# the topics that are made, and of the history.
HANDED_ON = {
    re.compile(r"(?:key|value)\.converter\.(.+)"): "plugins/apicurio/*.jar",
    re.compile(r"(schema\.history\.internal\.kafka\..+)"): "plugins/*/debezium-storage-kafka-*.jar",
    re.compile(r"topic\.creation\.\w+\.(.+)"): "kafka/*.jar",
}
# Keys that nobody here knows: of the database's driver.
UNSEEN = ("driver.",)
# Connect validates by connecting. Where nothing listens, this key carries the refusal.
CONNECTION = "database.hostname"
# Known to the connectors, by Debezium's documentation, and not in what their classes list.
UNLISTED = {"field.name.adjustment.mode"}


def problems(connect, path):
    """What is wrong with one connector, and whether its database could not be reached."""
    settings = json.loads(path.read_text())
    kind = settings["connector.class"].rsplit(".", 1)[1]
    # The driver of SQL Server tries for half a minute where nothing listens.
    impatient = {"driver.loginTimeout": "1"} if kind.startswith("SqlServer") else {}
    asked = {"name": path.stem, **settings, **impatient}
    status, body = http("PUT", f"{connect}/connector-plugins/{kind}/config/validate", asked, timeout=120)
    if status != 200:
        return [f"Connect answers {status}: {body[:500].decode()}"], False
    configs = json.loads(body)["configs"]
    known = {c["definition"]["name"] for c in configs}
    found, unreachable = [], False
    for config in configs:
        for error in config["value"]["errors"]:
            if config["value"]["name"] == CONNECTION and "refused" in error:
                unreachable = True
            else:
                found.append(f"{config['value']['name']}: {error}")
    for key in settings:
        if key not in known | UNLISTED and not key.startswith(UNSEEN) and not is_handed_on(key):
            found.append(f"{key}: no such key")
    return found, unreachable


def is_handed_on(key):
    """Whether it is handed on to somebody whose classes have its name in them."""
    for family, jars in HANDED_ON.items():
        if name := family.fullmatch(key):
            return any(has_name(jar, name[1].encode()) for jar in sorted(cache_folder().glob(jars)))
    return False


def has_name(jar, name):
    """Whether a class of the file has this text, all of it: a class file has a text behind its length."""
    wanted = len(name).to_bytes(2, "big") + name
    with zipfile.ZipFile(jar) as classes:
        return any(wanted in classes.read(c) for c in classes.namelist() if c.endswith(".class"))


def main():
    connect = sys.argv[1] if len(sys.argv) > 1 else f"http://{HOST}:{PORTS['connect']}"
    wrong = 0
    for path in FILES:
        found, unreachable = problems(connect, path)
        print(f"{path.name:24} {'WRONG' if found else 'valid'}{', its database not reached' if unreachable else ''}")
        for line in found:
            print(f"  {line}")
        wrong += bool(found)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
