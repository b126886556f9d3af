#!/bin/sh
# Gives Kafka Connect the connectors of these files, each after Connect itself has found nothing wrong with it; waits until their tasks run.
# May be repeated: a connector that is there gets the new configuration.
#   register.sh CONNECT_URL FILE.json ...        registers
#   register.sh --check CONNECT_URL FILE.json    only validates: exit 1 and what is wrong, by key
# Needs curl and nothing else, so that it runs in curl's own image.
set -eu

check=
if [ "$1" = --check ]; then check=yes; shift; fi
url=$1
shift

for file in "$@"; do
    name=$(basename "$file" .json)
    class=$(sed -n 's/.*"connector.class": *"\([^"]*\)".*/\1/p' "$file")
    # The validating endpoint wants the name among the settings.
    named=$(sed "0,/{/s//{\"name\": \"$name\",/" "$file")
    # A value that is wrong has a list of errors that is not empty.
    answer=$(printf '%s' "$named" | curl -sS -X PUT -H 'Content-Type: application/json' --data-binary @- \
        "$url/connector-plugins/${class##*.}/config/validate")
    case $answer in
    *'"error_count":0,'*) ;;
    *)
        echo "register: $name is not valid:" >&2
        printf '%s\n' "$answer" | sed 's/{"definition"/\n&/g' |
            sed -n 's/.*"value":{"name":"\([^"]*\)".*"errors":\[\("[^]]*\)\].*/  \1: \2/p' >&2
        # An answer without a count is an error of Connect itself.
        case $answer in *'"error_count"'*) ;; *) printf '%s\n' "$answer" >&2 ;; esac
        exit 1
        ;;
    esac
    [ -z "$check" ] || continue
    printf '%s' "$named" | curl -sS --fail-with-body -X PUT -H 'Content-Type: application/json' --data-binary @- \
        -o /dev/null "$url/connectors/$name/config"
    # Registered is not running: the task starts a moment later, or fails then.
    tries=0
    while :; do
        status=$(curl -sS "$url/connectors/$name/status")
        case $status in
        *'"tasks":[{'*'"state":"FAILED"'*) echo "register: the task of $name failed: $status" >&2; exit 1 ;;
        *'"tasks":[{'*'"state":"RUNNING"'*) break ;;
        esac
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { echo "register: $name does not run after a minute: $status" >&2; exit 1; }
        sleep 0.5
    done
    echo "register: $name runs"
done
