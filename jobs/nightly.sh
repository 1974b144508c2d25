#!/usr/bin/env bash
# Score yesterday's recordings into a dataset that grows night by night. All it knows is where things lie; what a run
# does stands in night.toml, and `batchser run --help` says what can stand there.
#
#   BATCHSER_RECORDINGS=/recordings BATCHSER_OUT=/results/emotions jobs/nightly.sh [more options of batchser run]
#
# BATCHSER_RECORDINGS  folder, or prefix such as s3://bucket/recordings, with one folder a day: 2026-11-20
# BATCHSER_OUT         the dataset, a folder or a prefix
# BATCHSER_CONFIG      a TOML file (night.toml beside this script)
# BATCHSER_LOGS        folder of logs and metrics (the folder that this is started in)
# BATCHSER_DAY         the day to score (yesterday)
# BATCHSER_REPORT      a page to write for people, with the week that ends on that day, e.g. /srv/www/calls.html (none)
#
# Exit codes are those of `batchser run`; 75 where the night before is still at work.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${BATCHSER_RECORDINGS:?state where the recordings lie}" "${BATCHSER_OUT:?state where the dataset lies}"
logs=${BATCHSER_LOGS:-$PWD}
day=${BATCHSER_DAY:-$(date -d yesterday +%F)}
mkdir -p "$logs" || exit 2

exec 9>"$logs/nightly.lock" || exit 2
flock --nonblock 9 || { echo "nightly.sh: the night before is still at work ($logs/nightly.lock)" >&2; exit 75; }

batchser run "${BATCHSER_RECORDINGS%/}/$day" --out "$BATCHSER_OUT" --config "${BATCHSER_CONFIG:-$here/night.toml}" \
    --metrics "$logs/batchser.prom" --json-summary "$logs/$day.json" "$@" >>"$logs/$day.log" 2>&1 9>&-
code=$?
if [ -n "${BATCHSER_REPORT:-}" ] && [ "$code" -le 1 ]; then  # the tables are what matters: no report is no fault
    batchser report "$BATCHSER_OUT" --html "$BATCHSER_REPORT" --from "$(date -d "$day -6 days" +%F)" \
        >>"$logs/$day.log" 2>&1 9>&- || echo "no report was written" >>"$logs/$day.log"
fi
echo "exit code $code" >>"$logs/$day.log"
exit "$code"
