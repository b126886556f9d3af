#!/usr/bin/env python3
"""The end-to-end test: Freshet against the real peers. A shop in PostgreSQL changes in every way that hurts, while peers are killed and
restarted; after each step the index has to equal the view's own SQL, run by PostgreSQL itself, value by value. Then the same for a table of
MariaDB, with its own types.

    e2e.py FRESHET [--products N] [--dir DIR] [--keep]

FRESHET is the program; `make e2e` builds it. Progress goes to stderr; the last line, on stdout, is one JSON object with the time of each
step. Exit 1 when an index differs or a wait ends, and what differs is said. `--keep` leaves the peers running and the data where it is.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

from compare import differences, read
from connectors import problems
from peers import BUCKET, CONNECT_ENVIRONMENT, HOST, ORDER, PORTS, REPO, S3_KEYS, PeerError, Peers, await_true, fetch, http

SHOP = pathlib.Path(__file__).resolve().parent / "shop"
MSHOP = SHOP.with_name("mshop")
CONNECT = f"http://{HOST}:{PORTS['connect']}"
LISTEN = f"{HOST}:18080"
DIMENSION = 384
SETTLE_SECONDS = 300
# The tables that the shop's dataflow reads, each with its topic `shop.public.<table>`.
TABLES = ("product", "category", "review")


def say(text):
    print(f"e2e: {text}", file=sys.stderr, flush=True)


class Database:
    """PostgreSQL, as the shop sees it."""

    command = ["psql", "-h", HOST, "-p", str(PORTS["postgres"]), "-U", "postgres", "-d", "shop", "-qAtX", "-v", "ON_ERROR_STOP=1"]
    environment = {**os.environ, "PGOPTIONS": "-c timezone=UTC -c intervalstyle=iso_8601"}

    def run(self, sql, *options):
        done = subprocess.run([*self.command, *options], input=sql, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(f"psql: {done.stderr.strip()}\n{sql[:500]}")
        return done.stdout

    def file(self, path, **variables):
        self.run("", "-f", str(path), *(f"--set={k}={v}" for k, v in variables.items()))

    def view(self):
        """The view's SQL over the tables as they are now: key -> row."""
        sql = (SHOP / "models/search.sql").read_text()
        for table in TABLES:
            sql = sql.replace(f"{{{{ source('shop', '{table}') }}}}", f"public.{table}")
        lines = self.run(f"select row_to_json(v) from (\n{sql}\n) v;").splitlines()
        rows = (read(line) for line in lines)
        return {row["id"]: row for row in rows}


class MariaDb:
    """MariaDB, as its shop sees it."""

    columns = "id big name body price wide f d at ts d1 t1 y1 e1 s1 b1 b10 j bin bl ti me".split()
    # How a column is printed where JSON has no text for it.
    printed = {"b1": "b1 + 0", "b10": "concat('=', b10 + 0)", "bin": "hex(bin)", "bl": "hex(bl)", "t1": "cast(t1 as char)", "at": "cast(at as char)",
               "ts": "cast(ts as char)", "j": "cast(j as char)", "f": "f + 0e0"}

    def run(self, sql):
        command = ["mariadb", "--no-defaults", "-h", HOST, "-P", str(PORTS["mariadb"]), "-u", "root", "-N", "-r", "--batch", "--default-character-set=utf8mb4",
                   "--init-command=set time_zone = '+00:00'"]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(f"mariadb: {done.stderr.strip()}\n{sql[:500]}")
        return done.stdout

    def view(self):
        pairs = ", ".join(f"'{c}', {self.printed.get(c, c)}" for c in self.columns)
        lines = self.run(f"select json_object({pairs}, 'search_text', concat_ws('. ', name, body)) from shop.product;").splitlines()
        rows = (read(line) for line in lines)
        return {row["id"]: row for row in rows}


class Writer(threading.Thread):
    """Runs one transaction after another, `make(n)` for n = 0, 1, ...; `finish` waits until the last is committed.

    A patient one goes on with the next when the database was away: whether that transaction was committed is for the database to say.
    """

    def __init__(self, database, make, patient=False):
        super().__init__(daemon=True)
        self.database, self.make, self.patient = database, make, patient
        self.stopped = threading.Event()
        self.transactions = self.lost = 0
        self.error = None
        self.start()

    def run(self):
        while not self.stopped.wait(0.02):
            try:
                self.database.run(self.make(self.transactions + self.lost))
                self.transactions += 1
            except PeerError as error:
                self.lost += 1
                if not self.patient:
                    self.error = error
                    return

    def finish(self):
        self.stopped.set()
        self.join()
        if self.error:
            raise self.error
        return self.transactions


class Freshet:
    """The program under test."""

    def __init__(self, program, dataflow, folder):
        self.program, self.dataflow, self.folder, self.process = program, dataflow, folder, None
        self.raw = f"s3://{BUCKET}/raw"
        folder.mkdir(exist_ok=True)
        self.log = folder / "freshet.log"

    def environment(self):
        return {
            **os.environ, "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{PORTS['kafka']}",
            "SCHEMA_REGISTRY_URL": f"http://{HOST}:{PORTS['registry']}/apis/ccompat/v7",
            "FRESHET_DATA_DIR": str(self.folder / "data"), "FRESHET_LISTEN": LISTEN,
            "RAW_URI": self.raw, "INDEX_URI": f"s3://{BUCKET}/index", "S3_ENDPOINT": f"http://{HOST}:{PORTS['s3']}",
            "AWS_ACCESS_KEY_ID": S3_KEYS[0], "AWS_SECRET_ACCESS_KEY": S3_KEYS[1],
        }

    def launch(self):
        try:
            with socket.create_connection(LISTEN.split(":"), timeout=2):
                raise PeerError(f"something listens on {LISTEN} already, where Freshet is to listen")
        except OSError:
            pass
        with open(self.log, "ab") as log:
            command = [self.program, "run", str(self.dataflow)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment())

    def start(self):
        self.launch()
        await_true("Freshet answers", lambda: http("GET", f"http://{LISTEN}/healthz")[0] == 200, 120, alive=self.assert_alive)

    def assert_alive(self):
        if self.process.poll() is not None:
            raise PeerError(f"Freshet ended with {self.process.returncode}; the end of its log:\n{self.log.read_text()[-3000:]}")

    def stop(self, kill=False):
        if self.process and self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
            code = self.process.wait(60)
            if not kill and code != 0:
                raise PeerError(f"Freshet ended with {code} when it was asked to stop; the end of its log:\n{self.log.read_text()[-3000:]}")

    def status(self):
        return json.loads(http("GET", f"http://{LISTEN}/v1/status")[1])

    def ended(self):
        """How it ended, once it has."""
        return None if self.process.poll() is None else f"code {self.process.returncode}"

    def logged(self):
        """How long the log is, for `await_said`."""
        return self.log.stat().st_size

    def await_said(self, words, since):
        """Waits until the log has a line after `since` with all of these words."""
        def said():
            with open(self.log, "rb") as log:
                log.seek(since)
                lines = log.read().decode().splitlines()
            return next((line for line in lines if all(word in line for word in words)), None)
        line = await_true(f"the log says {' ... '.join(words)}", said, SETTLE_SECONDS)
        said = json.loads(line)
        say(f"  said: {said.pop('message')} ({', '.join(str(v) for k, v in said.items() if k in ('reason', 'url', 'table', 'partition', 'heartbeats'))[:300]})")

    def audit(self):
        """Compares the index with the view computed from raw in batch; the service has to have ended."""
        done = subprocess.run([self.program, "audit", str(self.dataflow)], env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(f"the audit ended with {done.returncode}:\n{done.stdout}{done.stderr[-2000:]}")
        say("  audit: " + "; ".join(" ".join(line.split()) for line in done.stdout.splitlines() if not line.startswith("view")))

    def quarantine(self):
        """The messages that wait, each as an object."""
        command = [self.program, "quarantine", "list", str(self.dataflow), "--json"]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(f"the quarantine cannot be listed: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def rows(self):
        """The whole index: the nearest of all to any vector are all. None while it is not open."""
        body = {"vector": [1.0] + [0.0] * (DIMENSION - 1), "k": 100_000}
        status, answer = http("POST", f"http://{LISTEN}/v1/search", body, timeout=60)
        if status == 503:
            return {}
        if status != 200:
            raise PeerError(f"the search was answered {status}: {answer[:500].decode()}")
        hits = read(answer)["hits"]
        rows = {hit["key"]: hit["row"] for hit in hits}
        if len(rows) != len(hits):
            raise PeerError(f"the index has {len(hits)} rows of {len(rows)} keys")
        return rows


class Connector:
    """One connector of compose/connect, as this test needs it."""

    def __init__(self, name, **changes):
        self.name = name
        settings = json.loads((REPO / f"compose/connect/{name}.json").read_text())
        self.settings = {**settings, **{k.replace("__", "."): v for k, v in changes.items()}}

    def register(self):
        status, body = http("PUT", f"{CONNECT}/connectors/{self.name}/config", self.settings, timeout=90)
        if status not in (200, 201):
            raise PeerError(f"{self.name} was answered {status}: {body.decode()[:1000]}")
        self.await_running()

    def await_running(self):
        await_true(f"{self.name} runs", self.running, 120)

    def tasks(self):
        status, body = http("GET", f"{CONNECT}/connectors/{self.name}/status")
        return json.loads(body).get("tasks", []) if status == 200 else []

    def revive(self):
        """Starts a task again that has failed, as somebody does by hand."""
        if any(task["state"] == "FAILED" for task in self.tasks()):
            http("POST", f"{CONNECT}/connectors/{self.name}/restart?includeTasks=true&onlyFailed=true")

    def running(self):
        tasks = self.tasks()
        for task in tasks:
            if task["state"] == "FAILED":
                raise PeerError(f"the task of {self.name} failed: {task['trace'][:2000]}")
        return bool(tasks) and all(t["state"] == "RUNNING" for t in tasks)

    def forget(self):
        """Deletes it with its offsets: one of the same name begins with a snapshot."""
        path = f"{CONNECT}/connectors/{self.name}"
        http("PUT", f"{path}/stop")
        # A stopped connector has no tasks; until then Connect does not let go of its offsets.
        await_true(f"the offsets of {self.name} are deleted", lambda: http("DELETE", f"{path}/offsets")[0] == 200, 120)
        http("DELETE", path)
        await_true(f"{self.name} is gone", lambda: http("GET", path)[0] == 404, 120)


class Scenario:
    """The steps, in their order: each method `step_...` is one, and each ends with the comparison."""

    def __init__(self, program, folder, products):
        self.folder, self.products = folder, products
        self.peers = Peers(folder / "peers")
        self.database = Database()
        self.mariadb = MariaDb()
        self.freshet = Freshet(program, SHOP, folder / "shop")
        self.second = Freshet(program, MSHOP, folder / "mshop")
        self.connector = Connector(
            "postgres-product", heartbeat__interval__ms="1000",
            # A partition that a topic has gained is used within a second, not five minutes.
            producer__override__metadata__max__age__ms="1000",
            # The converter does not look at its schemas again in the moment in which the registry is empty, and make them anew there.
            **{f"{part}.converter.apicurio.registry.check-period-ms": "3600000" for part in ("key", "value")},
            # A truncate stands in one partition only, and is about the rows of all of them: the table that is truncated has one.
            topic__creation__groups="rows,one", topic__creation__one__include="shop\\.public\\.review",
            topic__creation__one__partitions="1", topic__creation__one__replication__factor="-1",
            topic__creation__one__retention__ms="-1", topic__creation__rows__exclude="shop\\.public\\.review")
        self.times = {}
        self.marks = 0

    def run(self):
        for name in [n for n in dir(type(self)) if n.startswith("step_")]:
            began = time.monotonic()
            words = name.split("_", 2)[2].replace("_", " ")
            say(words)
            getattr(self, name)()
            self.times[words] = round(time.monotonic() - began, 1)
            say(f"  {self.times[words]} s")

    def shopping(self, first):
        """A shop's transactions; `first` and up are keys that nobody else uses."""
        def make(n):
            some, new = 1 + n * 7919 % self.products, first + n
            return f"""begin;
                insert into product select (fill({new}, 1)).*;
                update product set list_price = list_price + 1, stock = (stock + 1) % 30000 where id = {some};
                update product set name = name || '!' where id = {1 + n * 31 % self.products} and length(name) < 40;
                delete from product where id = {new - 40} and {n} % 2 = 0;
                update review set rating = 1 + (rating + 1) % 5 where id = {some};
                commit;"""
        return make

    def settle(self):
        """Waits until the index equals PostgreSQL's view; says what differs when it does not in time."""
        # So that being equal can only mean that what came before has been seen: a row of every partition changes last.
        self.marks += 1
        self.database.run(f"update product set stock = {self.marks} where id between 2 and 40;")
        self.equals(self.freshet, self.database.view())

    def equals(self, freshet, expected):
        last = []

        def equal():
            last[:] = differences(expected, freshet.rows())
            return not last

        try:
            await_true("the index equals the view", equal, SETTLE_SECONDS, pause=1, alive=freshet.assert_alive)
        except PeerError as error:
            status = [] if freshet.ended() else [json.dumps(freshet.status())]
            raise PeerError("\n  ".join([str(error), *last, *status])) from None
        say(f"  {len(expected)} rows equal, value by value")

    # ---- the steps ----------------------------------------------------------------------------------------------------------

    def step_01_start_the_peers(self):
        self.peers.start("postgres", "kafka", "registry", "connect", "s3", "prometheus")

    def step_02_fill_the_shop(self):
        subprocess.run([*Database.command[:-1], "ON_ERROR_STOP=1", "-d", "postgres", "-c", "create database shop"], check=True)
        self.database.file(SHOP / "schema.sql", products=self.products)
        self.database.file(REPO / "compose/postgres/setup.sql", cdc_password=CONNECT_ENVIRONMENT["POSTGRES_PASSWORD"])

    def step_03_validate_the_connectors(self):
        for name in ("postgres-product", "sqlserver-product"):
            found, unreachable = problems(CONNECT, REPO / f"compose/connect/{name}.json")
            if found or unreachable != name.startswith("sqlserver"):
                raise PeerError(f"{name} is not valid: {found}")

    def step_04_snapshot_while_writes_go_on(self):
        writer = Writer(self.database, self.shopping(1_000_001))
        self.connector.register()
        self.freshet.start()
        await_true("rows are searchable", lambda: self.freshet.status()["index"]["rows"] > 0, SETTLE_SECONDS, alive=self.freshet.assert_alive)
        say(f"  {writer.finish()} transactions meanwhile")
        self.settle()

    def step_05_keys_that_change_and_rows_born_again(self):
        self.database.run("""
            update product set id = id + 5000000 where id between 100 and 120;
            begin; delete from product where id = 121; insert into product select (fill(121, 3)).*; commit;
            begin; update product set name = 'never seen' where id < 50; rollback;
            begin; insert into product select (fill(6000000, 0)).*; update product set name = 'twice' where id = 6000000;
                delete from product where id = 6000000; commit;
            update product set is_active = not is_active where id between 130 and 150;
            update category set name = name || ' (new)' where id % 5 = 0;
            delete from category where id = 7;
            alter table review replica identity full;
            update review set rating = 1 + rating % 5 where id between 10 and 30; delete from review where id between 31 and 35;
            """)
        self.settle()

    def step_06_long_texts_that_are_left_alone(self):
        # An update of another column sends a placeholder in the text's place; an update of the text sends it.
        self.database.run(f"""
            update product set sold = 77 where id % 500 = 0;
            update product set description = repeat('a new long text ', 300) where id = {self.products // 500 * 500};
            update product set sold = 78 where id = {self.products // 500 * 500};
            """)
        self.settle()

    def step_07_truncate(self):
        self.database.run("truncate review;")
        self.settle()
        self.database.run("insert into review select n, 1 + n % 50, 1 + n % 5, '2026-05-05 05:05:05+00' from generate_series(1, 200) n;")
        self.settle()

    def step_08_alter_table(self):
        for change in (
            "alter table product add column added text", "alter table product add column counted int not null default 7",
            "alter table product drop column note", "alter table product rename column old_name to new_name",
            "alter table product alter column sold type bigint", "alter table product alter column stock type int",
        ):
            self.database.run(f"{change}; update product set sold = coalesce(sold, 0) / 2 + 1 where id between 200 and 260;")
        self.database.run("update product set sold = 9223372036854775807, stock = 2147483647 where id = 201;")
        self.settle()

    def step_09_incremental_snapshot_among_changes(self):
        before = self.events("snapshot")
        writer = Writer(self.database, lambda n: f"update product set sold = sold / 2 + 3 where id = {1 + n * 7919 % self.products};")
        self.database.run("""insert into debezium_signal values
            ('again', 'execute-snapshot', '{"data-collections": ["public.product"], "type": "incremental"}');""")
        # A row that changes while its chunk is read comes as its change alone.
        await_true("the incremental snapshot is read", lambda: self.events("snapshot") - before > 0.9 * self.products, SETTLE_SECONDS, alive=self.freshet.assert_alive)
        say(f"  {writer.finish()} changes meanwhile")
        self.settle()

    def counted(self, *names):
        """The sum of these counters of the Freshet that runs."""
        all_of_them = dict(line.rsplit(" ", 1) for line in http("GET", f"http://{LISTEN}/metrics")[1].decode().splitlines() if not line.startswith("#"))
        return sum(int(all_of_them[name]) for name in names)

    def events(self, *ops):
        """Events of these kinds that this Freshet has read since it was started."""
        return self.counted(*(f'freshet_events_total{{op="{op}"}}' for op in ops))

    # Each peer is killed and started again while the shop goes on; what Freshet sees of it has to stand in its log.

    def under_load(self, peer, *said):
        """Kills a peer and starts it again; `said` are the words of each line that the log has to have after that."""
        writer = Writer(self.database, self.shopping(3_000_001 + 100_000 * ORDER.index(peer)), patient=peer == "postgres")
        since = self.freshet.logged()
        await_true("the shop trades", lambda: writer.error or writer.transactions > 10, SETTLE_SECONDS)
        self.peers.kill(peer)
        if said:
            self.freshet.await_said(said[0], since)
        self.peers.start(peer)
        self.connector.await_running()
        seen = writer.transactions
        await_true("the shop trades on", lambda: writer.error or writer.transactions > seen + 10, SETTLE_SECONDS)
        say(f"  {writer.finish()} transactions meanwhile, {writer.lost} lost")
        for words in said[1:]:
            self.freshet.await_said(words, since)
        self.settle()

    def step_10_connector_killed_so_that_events_repeat(self):
        # It stores its offsets every few seconds, and writes again what came after the last time. Once it may just have stored them.
        for _ in range(3):
            before = self.repeats()
            self.under_load("connect", *self.silence)
            repeats = self.repeats() - before
            say(f"  {repeats} events came twice")
            if repeats:
                return
        raise PeerError("no event came twice")

    silence = ["a connector is silent"], ["a connector that was silent is heard again"]

    def repeats(self):
        """Changes of rows that Freshet has read beyond those that the database counts, since whenever."""
        await_true("all is read", lambda: self.freshet.status()["lag_total"] == 0, SETTLE_SECONDS, alive=self.freshet.assert_alive)
        made = self.database.run(f"select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables where relname in {TABLES};")
        return self.events("create", "update", "delete") - int(made)

    def step_11_broker_killed(self):
        self.under_load("kafka", ["waiting for the broker", f"{HOST}:{PORTS['kafka']}"], ["the broker answers again"])

    def step_12_database_killed(self):
        self.under_load("postgres", *self.silence)

    def step_13_storage_of_raw_killed(self):
        self.under_load("s3", ["landing waits", self.freshet.raw], ["landing goes on"])

    def step_14_prometheus_killed(self):
        self.under_load("prometheus")

    def step_15_registry_killed_and_restored(self):
        # Its storage is memory: what it gives out before it is killed is all that is left of it. What it has told needs no registry.
        admin = f"http://{HOST}:{PORTS['registry']}/apis/registry/v2/admin"
        status, export = http("GET", f"{admin}/export")
        writer = Writer(self.database, self.shopping(4_000_001))
        since = self.freshet.logged()
        await_true("the shop trades", lambda: writer.error or writer.transactions > 10, SETTLE_SECONDS)
        self.peers.kill("registry")
        self.freshet.await_said(["registry", "does not answer"], since)
        self.peers.start("registry")
        # Empty as it is, it is not believed.
        self.freshet.await_said(["waiting for a peer", "no longer has the schema"], since)
        keep = {"Content-Type": "application/zip", "X-Registry-Preserve-GlobalId": "true", "X-Registry-Preserve-ContentId": "true"}
        put, _ = http("POST", f"{admin}/import", export, keep)
        if (status, put) != (200, 204):
            raise PeerError(f"the registry's export was answered {status}, its import {put}")
        self.freshet.await_said(["the peer answers again"], since)
        say(f"  {writer.finish()} transactions meanwhile")
        # A new shape asks for a new id.
        self.database.run("alter table product add column after_restore text; update product set sold = 5 where id between 270 and 280;")
        self.settle()

    def step_16_partitions_added_to_a_topic(self):
        # A key that moves to another partition leaves its order behind: what was written before has to be read, and to have landed.
        self.await_landed()
        since = self.freshet.logged()
        self.peers.topics("--alter", "--topic", "shop.public.product", "--partitions", "6")
        writer = Writer(self.database, self.shopping(5_000_001))
        def read():
            position = self.freshet.status()["position"]["shop.public.product"]
            return position.get("4", 0) > 10 and position.get("5", 0) > 10
        await_true("events of the new partitions are read", read, SETTLE_SECONDS, alive=self.freshet.assert_alive)
        say(f"  {writer.finish()} transactions meanwhile")
        self.freshet.await_said(["the topic has gained this partition", "shop.public.product/5"], since)
        self.settle()

    def await_landed(self):
        """Waits until raw holds all that the index reflects."""
        def landed():
            status = self.freshet.status()
            return status["raw"]["landed"] == status["position"]
        await_true("everything has landed", landed, SETTLE_SECONDS, alive=self.freshet.assert_alive)

    def step_17_freshet_killed(self):
        writer = Writer(self.database, self.shopping(6_000_001))
        await_true("the shop trades", lambda: writer.error or writer.transactions > 10, SETTLE_SECONDS)
        self.freshet.stop(kill=True)
        self.database.run("update product set name = name || ' (while it was away)' where id between 300 and 310; delete from product where id between 311 and 320;")
        since = self.freshet.logged()
        self.freshet.start()
        self.freshet.await_said(["hydrated from raw", "shop__product"], since)
        say(f"  {writer.finish()} transactions meanwhile")
        self.settle()

    def step_18_prometheus_sees_it(self):
        url = f"http://{HOST}:{PORTS['prometheus']}/api/v1/"
        begun = time.time()
        def recorded():
            # When the rule was computed last; what an earlier Prometheus or an earlier scrape left does not count.
            found = json.loads(http("GET", url + "query?query=timestamp(freshet:lag_events:sum)")[1])["data"]["result"]
            return found and float(found[0]["value"][1]) > begun
        await_true("Prometheus has scraped and recorded", recorded, 60)
        rules = [r for g in json.loads(http("GET", url + "rules")[1])["data"]["groups"] for r in g["rules"]]
        sick = [r["name"] for r in rules if r["health"] == "err"]
        if sick or len(rules) < 10:
            raise PeerError(f"of {len(rules)} rules, these cannot be evaluated: {sick}")

    def step_19_audit(self):
        self.assert_no_rejects(self.freshet)
        self.freshet.stop()
        self.freshet.audit()

    def step_20_slot_lost_and_the_table_snapshotted_anew(self):
        # As the runbook has it; nobody hears of what happens to the tables now.
        self.freshet.start()
        self.settle()
        since = self.freshet.logged()
        self.connector.forget()
        self.database.run("select pg_drop_replication_slot('freshet');")
        self.database.run("""
            delete from product where id between 400 and 450; delete from category where id = 9; delete from review where id < 50;
            update product set name = name || ' (unheard)' where id between 460 and 470;
            """)
        for table in TABLES:
            self.peers.topics("--delete", "--topic", f"shop.public.{table}")
        self.freshet.await_said(["waiting for a peer", "does not exist"], since)
        self.connector.register()
        # They are others than those that it has read, and it does not go on in them.
        self.freshet.await_said(["the engine has failed", "made anew"], since)
        await_true("it has ended", self.freshet.ended, 120)
        self.freshet.raw = f"s3://{BUCKET}/raw-2"
        self.freshet.start()
        self.settle()
        computed = self.freshet.status()["embed"]["computed"]
        say(f"  {computed} texts were embedded")
        # Those of 11 rows are new, and a category's name has gone from some; the others' are in the store.
        if computed > self.products // 10:
            raise PeerError(f"{computed} texts were embedded, most of them once more")
        self.assert_no_rejects(self.freshet)
        self.freshet.stop()
        self.freshet.audit()

    def step_21_registry_that_has_forgotten(self):
        self.freshet.start()
        self.settle()
        before = self.freshet.rows()
        self.peers.kill("registry")
        self.peers.start("registry")
        since = self.freshet.logged()
        # Each new shape gets an id, until one meant something else before.
        for n in range(30):
            key = 501 + n
            self.database.run(f"alter table product add column after_loss_{n} text; update product set name = 'new' where id = {key};")

            def came():
                # The converter fails at first: what it remembers of ids is not there any more.
                self.connector.revive()
                return self.freshet.ended() or self.name_of(key) == "new"

            await_true("it is read or refused", came, SETTLE_SECONDS, pause=1)
            if self.freshet.ended():
                break
            after = self.freshet.rows()
            expected = {**before, **{k: {**before[k], "name": "new", "search_text": after[k]["search_text"]} for k in range(501, key + 1) if k in before}}
            wrong = differences(expected, after)
            if wrong:
                raise PeerError("\n  ".join(["an event was read by the schema of another", *wrong]))
        self.freshet.await_said(["the engine has failed", "made anew"], since)
        for _ in range(2):
            if self.freshet.ended() != "code 3":
                raise PeerError(f"Freshet ended with {self.freshet.ended()}")
            # Started again, it remembers what the ids meant.
            since = self.freshet.logged()
            self.freshet.launch()
            await_true("it has ended again", self.freshet.ended, 120)
            self.freshet.await_said(["the engine has failed", "made anew"], since)

    def name_of(self, key):
        status, answer = http("GET", f"http://{LISTEN}/v1/items/{key}")
        return json.loads(answer)["row"]["name"] if status == 200 else "new" if status == 404 and not self.is_active(key) else None

    def is_active(self, key):
        return self.database.run(f"select is_active from product where id = {key};").strip() == "t"

    def assert_no_rejects(self, freshet):
        quarantine = freshet.status()["quarantine"]
        if quarantine["total"]:
            raise PeerError(f"{quarantine} lie in quarantine: {freshet.quarantine()[:10]}")

    def step_22_mariadb_snapshot_exactly_once(self):
        # Connect writes in transactions from here on: the last offset of a partition is a marker's, which no reader gets.
        self.peers.stop("connect")
        self.peers.connect_exactly_once = True
        self.peers.start("connect", "mariadb")
        self.mariadb.run((MSHOP / "schema.sql").read_text())
        password = CONNECT_ENVIRONMENT["MARIADB_PASSWORD"]
        self.mariadb.run(f"set @cdc_password = '{password}';\n" + (REPO / "compose/mariadb/setup.sql").read_text())
        found, unreachable = problems(CONNECT, REPO / "compose/connect/mariadb-product.json")
        if found or unreachable:
            raise PeerError(f"mariadb-product is not valid: {found}")
        # That its server was killed it notices within a second, not a minute.
        Connector("mariadb-product", connect__keep__alive__interval__ms="1000", heartbeat__interval__ms="1000").register()
        self.second.start()
        self.equals(self.second, self.mariadb.view())

    def step_23_mariadb_changes(self):
        self.mariadb.run("""use shop;
            update product set price = price + 1, t1 = '-00:00:00.000001' where id between 2 and 60;
            update product set id = id + 5000 where id between 100 and 110;
            start transaction; delete from product where id = 121; insert into product (id, name, price) values (121, 'born again', 1); commit;
            start transaction; update product set name = 'never seen' where id < 50; rollback;
            alter table product add column added int not null default 7;
            alter table product modify column me int;
            update product set me = 2147483647, name = concat(name, '!') where id between 150 and 200;
            delete from product where id between 201 and 220;
            """)
        self.equals(self.second, self.mariadb.view())
        await_true("all is read, markers included", lambda: self.second.status()["lag_total"] == 0, 60, alive=self.second.assert_alive)
        ends = sum(sum(of.values()) for of in self.second.status()["position"].values())
        messages = self.counted("freshet_source_messages_total")
        if messages >= ends:
            raise PeerError(f"{messages} messages were read of {ends} offsets: there were no transactions")
        say(f"  {ends} offsets, {messages} of them messages")

    def trading(self, first):
        """Transactions of MariaDB's shop, on five keys from `first` on."""
        return lambda n: f"update shop.product set name = concat('no. {n} ', id), price = price + 1 where id between {first + n % 5} and {first + 10};"

    def step_24_storage_of_the_index_killed(self):
        writer = Writer(self.mariadb, self.trading(2))
        since = self.second.logged()
        await_true("the shop trades", lambda: writer.error or writer.transactions > 10, SETTLE_SECONDS)
        self.peers.kill("s3")
        self.second.await_said(["the index waits"], since)
        self.peers.start("s3")
        self.second.await_said(["the index goes on"], since)
        say(f"  {writer.finish()} transactions meanwhile")
        self.equals(self.second, self.mariadb.view())

    def step_25_mariadb_killed(self):
        writer = Writer(self.mariadb, self.trading(230), patient=True)
        await_true("the shop trades", lambda: writer.transactions > 10, SETTLE_SECONDS)
        since = self.second.logged()
        self.peers.kill("mariadb")
        self.second.await_said(["a connector is silent"], since)
        self.peers.start("mariadb")
        seen = writer.transactions
        await_true("the shop trades on", lambda: writer.transactions > seen + 10, SETTLE_SECONDS)
        say(f"  {writer.finish()} transactions meanwhile, {writer.lost} lost")
        self.second.await_said(["a connector that was silent is heard again"], since)
        self.mariadb.run("update shop.product set name = concat(name, ' (after)') where id between 1 and 240;")
        self.equals(self.second, self.mariadb.view())
        self.assert_no_rejects(self.second)
        self.second.stop()
        self.second.audit()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("freshet", type=pathlib.Path)
    parser.add_argument("--products", type=int, default=10_000, help="rows of the first snapshot")
    parser.add_argument("--dir", type=pathlib.Path, help="where data and logs lie; in the temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="leaves peers and data as they are at the end")
    arguments = parser.parse_args()
    folder = (arguments.dir or pathlib.Path(tempfile.mkdtemp(prefix="freshet-e2e-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    began = time.monotonic()
    scenario = Scenario(arguments.freshet.resolve(), folder, arguments.products)
    error = None
    try:
        fetch()
        scenario.run()
    except (PeerError, subprocess.SubprocessError) as failed:
        error = str(failed)
        say(f"FAILED: {error}")
    finally:
        if not arguments.keep:
            scenario.freshet.stop(kill=True)
            scenario.second.stop(kill=True)
            scenario.peers.stop()
    print(json.dumps({"e2e": "peers", "ok": error is None, "products": arguments.products, "seconds": round(time.monotonic() - began, 1),
                      "steps_seconds": scenario.times, "folder": str(folder)}))
    sys.exit(0 if error is None else 1)


if __name__ == "__main__":
    main()
