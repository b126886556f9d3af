#!/usr/bin/env python3
"""Runs what docs/onboarding.md and docs/runbook.md tell their readers to run: every block marked `sh`, in order, as it stands.

    docs.py FRESHET        exit 1 at the first block that fails, with its output

A shop of its own is made in real peers; Freshet is started where onboarding says so. A block marked `sh stopped` is run while Freshet is
stopped, and has to leave behind what it can start from. Blocks of any other mark are not run.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

from e2e import LISTEN, Database, Freshet
from peers import CONNECT_ENVIRONMENT, HOST, PORTS, REPO, PeerError, Peers, await_true, fetch

DOCS = [REPO / "docs/onboarding.md", REPO / "docs/runbook.md"]
# The heading from which on Freshet runs.
RUNNING = "## 7. Run it"
SHOP = """
create table category (id bigint primary key, parent_id bigint, name text not null, description text);
create table brand (id bigint primary key, name text not null, country text);
create table product (
    id bigint primary key, sku text not null, name text not null, description text, category_id bigint not null, brand_id bigint,
    stock int not null default 0, status text not null default 'active', is_active boolean not null default true,
    created_at timestamp(6) not null default now(), updated_at timestamptz
);
create table price (
    id bigint primary key, product_id bigint not null, currency text not null default 'EUR', amount numeric(10, 2) not null, valid_from timestamp(6) not null
);
create table review (
    id bigint primary key, product_id bigint not null, rating smallint not null, title text not null, body text, created_at timestamp(6) not null default now()
);
insert into category values (1, null, 'Outdoor', null), (2, 1, 'Camping', null);
insert into brand values (1, 'Nordlicht', 'NO');
insert into product (id, sku, name, description, category_id, brand_id, stock)
    select n, 'SKU-' || n, (array['head lamp', 'camping stove', 'folding chair', 'sleeping bag'])[1 + n % 4] || ' no. ' || n % 50, 'For ' || n % 7 || ' people.',
        1 + n % 2, case when n % 3 = 0 then null else 1 end, n % 9 from generate_series(1, 200) n;
insert into price select n, n, 'EUR', n * 1.25, '2026-01-01' from generate_series(1, 200) n;
insert into review (id, product_id, rating, title) select n, 1 + n % 100, 1 + n % 5, 'Fine' from generate_series(1, 300) n;
"""


def blocks(text):
    """(line, heading, mark, body) of each fenced block; the mark may be two words."""
    heading, lines = "", text.splitlines()
    n = 0
    while n < len(lines):
        if lines[n].startswith("## "):
            heading = lines[n]
        fence = re.fullmatch(r"```([\w ]*)", lines[n])
        if fence:
            end = lines.index("```", n + 1)
            yield n + 1, heading, fence[1], "\n".join(lines[n + 1:end])
            n = end
        n += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("freshet", type=pathlib.Path)
    program = parser.parse_args().freshet.resolve()
    fetch(kcat="kcat", jq="jq", unzip="unzip", curl="curl")
    with tempfile.TemporaryDirectory(prefix="freshet-docs-") as scratch:
        folder = pathlib.Path(scratch)
        folder.chmod(0o755)
        peers = Peers(folder / "peers")
        freshet = Freshet(program, REPO / "dataflows/product", folder / "product")
        environment = {
            **os.environ, "KAFKA": f"{HOST}:{PORTS['kafka']}", "CONNECT": f"http://{HOST}:{PORTS['connect']}",
            "REGISTRY": f"http://{HOST}:{PORTS['registry']}/apis/ccompat/v7", "PROMETHEUS": f"http://{HOST}:{PORTS['prometheus']}",
            "FRESHET": f"http://{LISTEN}", "BIN": str(program), "DATA": str(freshet.folder / "data"), "SCRATCH": str(folder),
            "CDC_PASSWORD": CONNECT_ENVIRONMENT["POSTGRES_PASSWORD"],
            "PSQL": f"psql -h {HOST} -p {PORTS['postgres']} -U postgres -d shop -v ON_ERROR_STOP=1",
        }
        ran = 0
        try:
            peers.start("postgres", "kafka", "registry", "connect", "prometheus")
            tool = folder / "kafka-topics.sh"
            tool.write_text(f'#!/bin/sh\nexec {shlex.join(peers.topics_command())} "$@"\n')
            tool.chmod(0o755)
            environment["TOPICS"] = str(tool)
            subprocess.run([*Database.command, "-d", "postgres", "-c", "create database shop"], check=True)
            Database().run(SHOP)
            for path in DOCS:
                for line, heading, mark, body in blocks(path.read_text()):
                    if heading == RUNNING and not freshet.process:
                        freshet.start()
                        await_true("Freshet is live", lambda: freshet.status()["state"] == "live" and freshet.status()["index"]["rows"], 120)
                    if mark not in ("sh", "sh stopped"):
                        continue
                    if mark == "sh stopped":
                        freshet.stop()
                    done = subprocess.run(["bash", "-euo", "pipefail", "-c", body], cwd=REPO, env=environment, capture_output=True, text=True, check=False)
                    where = f"{path.relative_to(REPO)}:{line}"
                    if done.returncode != 0:
                        raise PeerError(f"{where} ended with {done.returncode}:\n{body}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
                    if mark == "sh stopped":
                        freshet.start()
                        await_true("Freshet is live again", lambda: freshet.status()["state"] == "live", 120, alive=freshet.assert_alive)
                    ran += 1
                    print(f"docs: {where} ok\n{done.stdout.strip()[:600]}", file=sys.stderr)
        except PeerError as error:
            sys.exit(f"docs: {error}")
        finally:
            freshet.stop(kill=True)
            peers.stop()
        print(f"{ran} passed, 0 failed")


if __name__ == "__main__":
    main()
