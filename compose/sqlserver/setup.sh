#!/bin/bash
# Runs setup.sql as the administrator, with the connector's password. May be repeated.
#   MSSQL_SA_PASSWORD=... CDC_PASSWORD=... setup.sh HOST
set -euo pipefail

# It travels through a T-SQL text literal.
if [[ $CDC_PASSWORD == *"'"* ]]; then
    echo "setup: CDC_PASSWORD must not hold a single quote" >&2
    exit 2
fi
export SQLCMDPASSWORD=$MSSQL_SA_PASSWORD
exec /opt/mssql-tools18/bin/sqlcmd -C -b -S "$1" -U sa -v cdc_password="$CDC_PASSWORD" -i "$(dirname "$0")/setup.sql"
