#!/bin/sh
# Makes Freshet's buckets and the user that may use them, and nothing else. May be repeated.
set -eu

mc alias set store "$MINIO_URL" "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" >/dev/null
for bucket in freshet-raw freshet-index; do
    mc mb --ignore-existing "store/$bucket"
done
mc admin policy create store freshet /minio/freshet-policy.json
mc admin user add store "$FRESHET_S3_KEY" "$FRESHET_S3_SECRET"
# Attaching a policy that is attached already is an error of its own kind: ask first.
if ! mc admin policy entities store --user "$FRESHET_S3_KEY" | grep -qw freshet; then
    mc admin policy attach store freshet --user "$FRESHET_S3_KEY"
fi
