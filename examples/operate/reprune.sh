#!/bin/sh
# Prunes again on recent text, and promotes the result only where `prunekit accept` lets it pass.
#
#   MODEL=smollm2-135m TEXT=recent.jsonl RECORDS=records.jsonl POLICY=policy.toml RELEASES=/srv/prunekit sh reprune.sh
#
# RELEASES  holds a folder for each release, and the links `current` and `previous` (release.sh)
# MODEL     the dense model, which stays the fallback
# BASELINE  what the result is compared with, such as the dense model in the format of TARGET (default: MODEL)
# TEXT      recent requests, as `--calib` takes them; half of what is read, the other half is OLD
# OLD       what else the model must stay good at (default: builtin)
# TRAIN     tokens that the pruned model is trained on afterwards, such as 1M, on the same text (default: none)
# PARAMS    the share of parameters that is kept (default: 0.8)
# TARGET    an export beside the checkpoint, such as gguf (default: none). What is accepted is what is served: the export
#           (gguf: behind its server, with the extra serve; hf, vllm), else the checkpoint
# DTYPE     of the export, such as q8_0 (default: the target's own)
# KEEP      how many releases are kept, current and previous not counted (default: 3)
# RELOAD    a command that makes the servers open `current`; see release.sh
# REQUEST_LOG  the request log, which begins anew with each release; see release.sh
#
# Exit code: 0 promoted, 3 refused and nothing changed, 75 another run is at work, else that of the step that failed.
set -eu

say() { printf '%s\n' "reprune: $*" >&2; }

: "${MODEL:?}" "${TEXT:?}" "${RECORDS:?}" "${POLICY:?}" "${RELEASES:?}"
RELEASES=${RELEASES%/}
here=$(dirname "$0")

# What is started below closes it (9>&-): a server that RELOAD starts must not hold the lock.
exec 9>"$RELEASES/.lock"
if ! flock -n 9; then
    say "another run is at work in $RELEASES"
    exit 75
fi

name=$(date -u +%Y%m%dT%H%M%SZ)
# No release until all of it is there.
work="$RELEASES/.making-$name"
rm -rf "$RELEASES"/.making-*
mkdir "$work"
trap 'rm -rf "$work"' EXIT

text="$TEXT:0.5,${OLD:-builtin}:0.5"
pruned="$work/checkpoint"
[ -z "${TRAIN:-}" ] || pruned="$work/pruned"
prunekit prune "$MODEL" --params "${PARAMS:-0.8}" --calib "$text" -o "$pruned" 9>&-
if [ -n "${TRAIN:-}" ]; then
    prunekit recover "$pruned" --teacher "$MODEL" --text "$text" --tokens "$TRAIN" -o "$work/checkpoint" 9>&-
    rm -rf "$pruned"
fi
if [ -n "${TARGET:-}" ]; then
    prunekit export "$work/checkpoint" --to "$TARGET" ${DTYPE:+--dtype "$DTYPE"} -o "$work/export" 9>&-
fi
served="$work/checkpoint" server=
case "${TARGET:-}" in
"") ;;
gguf) served="$work/export" server=auto ;;
hf | vllm) served="$work/export" ;;
*) say "prunekit accept can't open an export for $TARGET, so it asks the checkpoint that was exported" ;;
esac

code=0
prunekit accept "$served" --baseline "${BASELINE:-$MODEL}" --records "$RECORDS" --policy "$POLICY" \
    ${server:+--server "$server"} -o "$work/accept" 9>&- || code=$?
if [ "$code" -ne 0 ]; then
    # What it was refused for is kept, the model is not.
    if [ -d "$work/accept" ]; then
        rm -rf "$RELEASES/refused"
        mv "$work/accept" "$RELEASES/refused"
    fi
    [ "$code" -ne 3 ] || say "refused; $RELEASES/refused says why, and current is what it was"
    exit "$code"
fi

mv "$work" "$RELEASES/$name"
sh "$here/release.sh" promote "$name" 9>&-
say "not watched yet: collect requests, then run prunekit watch init ... -o $RELEASES/current/base.json"

# The oldest first; never what a link names.
current=$(readlink "$RELEASES/current")
previous=$(readlink "$RELEASES/previous" || true)
for each in "$RELEASES"/[0-9]*T[0-9]*Z; do
    each=${each##*/}
    if [ "$each" != "$current" ] && [ "$each" != "$previous" ]; then printf '%s\n' "$each"; fi
done | sort -r | tail -n +"$((${KEEP:-3} + 1))" | while read -r old; do rm -rf "${RELEASES:?}/$old"; done
