#!/bin/sh
# Says which release servers open: $RELEASES/current is a link to one of the folders beside it.
#
#   RELEASES=/srv/prunekit sh release.sh promote 20261130T030000Z
#   RELEASES=/srv/prunekit sh release.sh rollback
#
# A link is replaced in one step (rename), so at every moment `current` is the old release or the new one. `previous` is
# what `current` was before. RELOAD is a command that makes the servers open it, and fails where they don't answer then:
# both links are put back. REQUEST_LOG is the request log: it is moved aside once the servers answer, so that it holds the
# requests of one release, from which the baseline of that release's watch is made.
#
# Exit code: 0 done, 2 nothing to promote or to go back to, 1 the servers did not come back.
set -eu

say() { printf '%s\n' "release: $*" >&2; }

# point LINK NAME
point() {
    ln -s "$2" "$RELEASES/.next.$$"
    mv -T "$RELEASES/.next.$$" "$RELEASES/$1"
}

reload() { [ -z "${RELOAD:-}" ] || sh -c "$RELOAD"; }

# The former requests get a name that prunekit watch does not take for a rotated part of the log.
begin_log() {
    if [ -n "${REQUEST_LOG:-}" ] && [ -e "$REQUEST_LOG" ]; then
        aside="$(dirname "$REQUEST_LOG")/until-$(date -u +%Y%m%dT%H%M%SZ)-$(basename "$REQUEST_LOG")"
        mv "$REQUEST_LOG" "$aside" || say "$REQUEST_LOG could not be moved"
    fi
}

# switch NAME: current becomes NAME, previous what current was.
switch() {
    before=$(readlink "$RELEASES/current" || true)
    former=$(readlink "$RELEASES/previous" || true)
    if [ -n "$before" ] && [ "$before" != "$1" ]; then point previous "$before"; fi
    point current "$1"
    if reload; then
        begin_log
        say "current is $1${before:+, previous is $before}"
        return
    fi
    if [ -z "$before" ]; then
        say "the servers did not come back with $1, and there is no former release"
        exit 1
    fi
    point current "$before"
    if [ -n "$former" ]; then point previous "$former"; else rm -f "$RELEASES/previous"; fi
    reload || say "nor with $before"
    say "the servers did not come back with $1; current is $before again"
    exit 1
}

: "${RELEASES:?name the folder of releases}"
RELEASES=${RELEASES%/}
trap 'rm -f "$RELEASES/.next.$$"' EXIT

case "${1:-}" in
promote)
    name=${2:?name the release}
    case "$name" in */* | .* | current | previous)
        say "$name is no name of a release"
        exit 2
        ;;
    esac
    if [ ! -d "$RELEASES/$name" ]; then
        say "$RELEASES has no release $name"
        exit 2
    fi
    switch "$name"
    ;;
rollback)
    name=$(readlink "$RELEASES/previous" || true)
    if [ -z "$name" ] || [ ! -d "$RELEASES/$name" ]; then
        say "there is no previous release to go back to"
        exit 2
    fi
    switch "$name"
    ;;
*)
    say "say promote NAME, or rollback"
    exit 2
    ;;
esac
