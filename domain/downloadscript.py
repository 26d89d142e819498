r"""The bash script that a scientist runs to get a retrieved dataset: fetch, check, unpack.

It has to run on what people have: bash 3.2 (macOS) or newer, GNU tar or bsdtar, `sha256sum` or `shasum`, `curl` or
`wget`. Hence no associative arrays, no `mapfile`, no expansion of empty arrays under `set -u` (an error before bash
4.4), digests made raw by `printf '\xNN'` (a NUL in printf's *format* reaches the pipe, one in a variable would not).

Links are secrets: they reach `curl` by its standard input, since `ps` shows arguments to everybody.
"""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from domain.files import check_path

_URL_CHARACTERS = ":/?#[]@!$&()*+,;=%-._~"
_MIB = 1 << 20
_SMALLEST_READ = 4096


@dataclass(frozen=True, slots=True)
class DownloadLink:
    """One tar to fetch, with all that is needed to check it."""

    url: str
    name: str
    """File name of the tar, e.g. `20.500.11935-abc_1_deadbeef.tar`."""
    size_bytes: int
    chunk_bytes: int
    digest: str
    """Hex of the sha256 over the raw sha256 digests of the tar's chunks, the last of which may be shorter."""
    bagged: bool = True
    """False for a plain tar of relative paths, made by the original system."""
    folder: str = ""
    """Where to unpack below the extraction folder; one name, so that several datasets do not mix. Empty: the top."""
    path: str = ""
    """Set: this is no tar but a single file, and belongs here below its folder."""


def download_script(links: Sequence[DownloadLink], *, title: str) -> str:
    """Return the text of a script that fetches, checks and unpacks every link; nothing in `links` or `title` can run.

    Raises:
        ValueError: there is no link, two share a name, or a field cannot be what it says.
    """
    for link in links:
        _check(link)
    names = [link.name.casefold() for link in links]  # a Mac's file system does not tell a.tar from A.tar
    if not names or len(set(names)) < len(names):
        raise ValueError("a download script needs links, each with a name of its own")
    lines = [f'  "$1" {number} {_arguments(link)}' for number, link in enumerate(links, 1)]
    shown = "".join(c if c.isprintable() else " " for c in title)
    values = {
        "@TITLE@": shown,
        "@TOTAL@": str(len(links)),
        "@BYTES@": str(sum(link.size_bytes for link in links)),
        "@LINKS@": "\n".join(lines),
    }
    # in one pass, so that a mark inside a title or a link stays text
    return re.sub("|".join(values), lambda mark: values[mark[0]], _SCRIPT)


def _check(link: DownloadLink) -> None:
    """Refuse what shell quoting alone cannot make harmless.

    Raises:
        ValueError: naming the field.
    """
    for field, name in (("name", link.name), ("folder", link.folder or "x")):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{field} is not a plain file name: {name!r}")
    if link.size_bytes < (0 if link.path else 1) or link.chunk_bytes <= 0:
        raise ValueError(f"{link.name!r} needs a size and a chunk size above zero")
    if link.path:
        check_path(link.path)
    if len(link.digest) != 64 or set(link.digest) - set("0123456789abcdef"):
        raise ValueError(f"{link.name!r} needs a sha256 as lower-case hex")


def _arguments(link: DownloadLink) -> str:
    """The link as words of the shell: url, name, size, chunk size, unit, digest, kind, folder, path."""
    unit = math.gcd(link.chunk_bytes, _MIB)
    if unit < _SMALLEST_READ:
        unit = link.chunk_bytes
    words = [
        quote(link.url, safe=_URL_CHARACTERS),
        link.name,
        str(link.size_bytes),
        str(link.chunk_bytes),
        str(unit),
        link.digest,
        "file" if link.path else "bag" if link.bagged else "tar",
        link.folder,
        link.path,
    ]
    return " ".join(shlex.quote(word) for word in words)


_SCRIPT = r"""#!/usr/bin/env bash
# @TITLE@
#
# Fetches @TOTAL@ file(s), @BYTES@ bytes, checks every byte, and unpacks them into one folder. Run it as
#     bash this-script
# again and again until it says "done": what is finished is not fetched twice. To say where things go:
#     DOWNLOAD_FOLDER=/big/disk/downloads EXTRACTION_FOLDER=/big/disk/data bash this-script
# No existing file is ever overwritten. The links in here give access to the data, so keep this file to yourself.
set -euo pipefail
shopt -s dotglob nullglob

downloads=${DOWNLOAD_FOLDER:-./downloads}
extraction=${EXTRACTION_FOLDER:-./extracted}
pause=${DOWNLOAD_RETRY_SECONDS:-5}
total=@TOTAL@
work=''
status=''
identical=0
differing=0

every_link() {
@LINKS@
}

say() {
  local text="$*"
  printf '%s\n' "${text//[[:cntrl:]]/?}" >&2
}

fail() {
  say "FAILED: $*"
  exit 1
}

clean_up() {
  if [ -n "$work" ]; then rm -rf "$work"; fi
}

prepare() {
  local tool
  for tool in tar dd cmp awk find mktemp; do
    command -v "$tool" >/dev/null 2>&1 || fail "this script needs $tool"
  done
  if command -v sha256sum >/dev/null 2>&1; then
    sha256() { sha256sum "$@"; }
  elif command -v shasum >/dev/null 2>&1; then
    sha256() { shasum -a 256 "$@"; }
  else
    fail "this script needs sha256sum or shasum"
  fi
  if command -v curl >/dev/null 2>&1; then
    transfer() { transfer_by_curl "$@"; }
  elif command -v wget >/dev/null 2>&1; then
    transfer() { transfer_by_wget "$@"; }
  else
    fail "this script needs curl or wget"
  fi
  # a folder that begins with "-" must not look like an option
  case $downloads in /* | ./*) ;; *) downloads="./$downloads" ;; esac
  case $extraction in /* | ./*) ;; *) extraction="./$extraction" ;; esac
  mkdir -p "$downloads" "$extraction"
  trap clean_up EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # unpacking happens here, beside its goal: moving is then a rename
  work=$(mktemp -d "$extraction/.unpacking.XXXXXX")
  pick_locale
}

# Names in the archives are UTF-8. bsdtar refuses them in another locale, and GNU tar converts them.
pick_locale() {
  local all candidate
  names_locale=C
  all=$(locale -a 2>/dev/null) || all=''
  for candidate in C.UTF-8 C.utf8 en_US.UTF-8 en_US.utf8; do
    case $'\n'"$all"$'\n' in
      *$'\n'"$candidate"$'\n'*) names_locale=$candidate; return 0 ;;
    esac
  done
}

bytes_of() {
  if [ -f "$1" ]; then
    echo $(($(wc -c <"$1")))
  else
    echo 0
  fi
}

# --- fetching -------------------------------------------------------------------------------------------------------

# Both set $status to the HTTP status. The link goes in by a pipe, since everybody can see a program's arguments.
transfer_by_curl() {
  local code=0 progress=--silent
  if [ -t 2 ]; then progress=--progress-bar; fi
  status=$(printf 'url = "%s"\n' "$1" | curl --config - --globoff --fail --location "$progress" --show-error \
    --connect-timeout 30 --speed-limit 1 --speed-time 60 --continue-at - --output "$2" \
    --write-out '%{http_code}') || code=$?
  return "$code"
}

transfer_by_wget() {
  local code=0
  printf '%s\n' "$1" | LC_ALL=C wget --quiet --server-response --tries=1 --timeout=60 --continue \
    --output-document="$2" --input-file=- 2>"$work/answer" || code=$?
  status=$(sed -n 's/^ *HTTP\/[0-9.]* \([0-9][0-9][0-9]\).*/\1/p' "$work/answer" | tail -n 1)
  return "$code"
}

# Bring $part to its full size, going on where it ends. Returns as soon as the server has sent all it has to send.
download() {
  local label=$1 url=$2 part=$3 size=$4 have now failures=0 restarts=0 code
  while :; do
    have=$(bytes_of "$part")
    if [ "$have" -gt "$size" ]; then
      rm -f "$part"
      have=0
    fi
    if [ "$have" -eq "$size" ]; then return 0; fi
    if [ "$have" -gt 0 ]; then
      say "$label: going on at byte $have of $size"
    else
      say "$label: fetching $size bytes"
    fi
    code=0
    transfer "$url" "$part" || code=$?
    if [ "$code" -eq 0 ]; then return 0; fi
    case $status in
      401 | 403 | 404 | 410)
        fail "$label: the link has expired (HTTP $status). Ask again in SciCat: retrieve the dataset once more and" \
          "run the new script, which goes on where this one stopped."
        ;;
      416) return 0 ;; # the server has less than was promised: the check will say so
    esac
    now=$(bytes_of "$part")
    if [ "$now" -eq "$size" ]; then return 0; fi
    if [ "$code" -eq 33 ] && [ "$restarts" -lt 3 ]; then # curl: the server cannot go on in the middle
      rm -f "$part"
      restarts=$((restarts + 1))
    elif [ "$now" -gt "$have" ]; then
      failures=0
    else
      failures=$((failures + 1))
    fi
    if [ "$failures" -ge 5 ]; then
      fail "$label: nothing more arrives (HTTP ${status:-000}). Run this script again later:" \
        "it goes on where it stopped."
    fi
    say "$label: interrupted, trying again"
    sleep "$pause"
  done
}

# --- checking -------------------------------------------------------------------------------------------------------

# Write the bytes that a hex text stands for.
raw() {
  local hex=$1 escaped=''
  while [ -n "$hex" ]; do
    escaped="$escaped\\x${hex:0:2}"
    hex=${hex:2}
  done
  # shellcheck disable=SC2059
  printf "$escaped"
}

# The sha256 over the raw sha256 of every chunk.
composite() {
  local file=$1 size=$2 chunk=$3 unit=$4 units position=0 one
  units=$((chunk / unit))
  while [ "$position" -lt "$size" ]; do
    one=$(dd if="$file" bs="$unit" skip=$((position / unit)) count="$units" 2>/dev/null | sha256) || exit 1
    raw "${one%% *}"
    position=$((position + chunk))
  done | sha256
}

intact() {
  local file=$1 size=$2 chunk=$3 unit=$4 digest=$5 found
  [ "$(bytes_of "$file")" -eq "$size" ] || return 1
  found=$(composite "$file" "$size" "$chunk" "$unit") || return 1
  [ "${found%% *}" = "$digest" ]
}

fetch() {
  local number=$1 url=$2 name=$3 size=$4 chunk=$5 unit=$6 digest=$7 round
  local file="$downloads/$name" label="[$number/$total] $name"
  if [ -e "$file" ]; then
    say "$label: is here, checking"
    if intact "$file" "$size" "$chunk" "$unit" "$digest"; then return 0; fi
    say "$label: is damaged, fetching it again"
    rm -f "$file"
  fi
  for round in 1 2; do
    if [ "$size" -eq 0 ]; then : >"$file.part"; fi
    download "$label" "$url" "$file.part" "$size"
    say "$label: checking"
    if intact "$file.part" "$size" "$chunk" "$unit" "$digest"; then
      mv -f "$file.part" "$file"
      return 0
    fi
    rm -f "$file.part"
    if [ "$round" -eq 1 ]; then say "$label: arrived damaged, fetching it again"; fi
  done
  fail "$label: arrived damaged twice. Please tell the people who run the archive."
}

# --- unpacking ------------------------------------------------------------------------------------------------------

differs() {
  say "differs and is left as it is: $1"
  differing=$((differing + 1))
}

same() {
  if [ -L "$1" ] || [ -L "$2" ]; then
    [ -L "$1" ] && [ -L "$2" ] && [ "$(readlink "$1")" = "$(readlink "$2")" ]
  else
    [ -f "$1" ] && [ -f "$2" ] && cmp -s "$1" "$2"
  fi
}

digests() {
  sha256 "$@" 2>/dev/null | LC_ALL=C awk '{ sub(/^\\/, ""); print $1 }'
}

# Compare the files of $ours with those of $theirs, lists of merge: all by two programs, one by one only if they differ.
compare() {
  local one other position
  if one=$(digests "${ours[@]}") && other=$(digests "${theirs[@]}") && [ "$one" = "$other" ]; then
    identical=$((identical + pairs))
    return 0
  fi
  for ((position = 0; position < pairs; position++)); do
    if same "${ours[position]}" "${theirs[position]}"; then
      identical=$((identical + 1))
    else
      differs "${theirs[position]}"
    fi
  done
}

# Move what is absent in $target (whole folders at once), compare what is there.
merge() {
  local source=$1 target=$2 entry goal batch ours theirs count=0 pairs=0
  batch=()
  ours=()
  theirs=()
  for entry in "$source"/*; do
    goal="$target/${entry##*/}"
    if [ ! -e "$goal" ] && [ ! -L "$goal" ]; then
      batch[count]=$entry
      count=$((count + 1))
    elif [ -d "$entry" ] && [ ! -L "$entry" ] && [ -d "$goal" ] && [ ! -L "$goal" ]; then
      merge "$entry" "$goal"
    elif [ -f "$entry" ] && [ ! -L "$entry" ] && [ -f "$goal" ] && [ ! -L "$goal" ]; then
      ours[pairs]=$entry
      theirs[pairs]=$goal
      pairs=$((pairs + 1))
    elif same "$entry" "$goal"; then
      identical=$((identical + 1))
    else
      differs "$goal"
    fi
    if [ "$count" -ge 200 ]; then
      mv -n "${batch[@]}" "$target/"
      batch=()
      count=0
    fi
    if [ "$pairs" -ge 200 ]; then
      compare
      ours=()
      theirs=()
      pairs=0
    fi
  done
  if [ "$count" -gt 0 ]; then mv -n "${batch[@]}" "$target/"; fi
  if [ "$pairs" -gt 0 ]; then compare; fi
}

# Ownership and permissions as for any file that you make; on a Mac, names that begin with "._" are ordinary files.
run_tar() {
  LC_ALL=$names_locale COPYFILE_DISABLE=1 tar "$@"
}

files_in() {
  find "$1" ! -type d -print0 | LC_ALL=C tr -dc '\000' | wc -c
}

unpack() {
  local number=$1 name=$3 kind=$8 folder=$9 path=${10} stage="$work/tree" announced found left
  local file="$downloads/$name" target="$extraction" label="[$number/$total] $name"
  if [ -n "$folder" ]; then target="$extraction/$folder"; fi
  say "$label: unpacking"
  mkdir -p "$stage" "$target"
  if [ "$kind" = file ]; then
    case $path in */*) mkdir -p "$stage/${path%/*}" ;; esac
    cp "$file" "$stage/$path"
  elif [ "$kind" = bag ]; then
    # files of the dataset lie in <top>/data/; what describes the bag lies in <top>/, and two components less is nothing
    run_tar -x -f - -o --no-same-permissions -C "$stage" --strip-components=2 <"$file"
    announced=$(run_tar -t -f - <"$file" | LC_ALL=C awk -F/ 'NF > 2 && $NF != "" { n++ } END { print n + 0 }')
    found=$(files_in "$stage")
    if [ "$announced" -ne "$found" ]; then
      fail "$label: only $((found)) of $announced files fit side by side; does this disk tell capital letters apart?"
    fi
  else
    run_tar -x -f - -o --no-same-permissions -C "$stage" <"$file"
  fi
  find "$stage" -type d ! -perm -700 -exec chmod u+rwx {} \;
  identical=0
  local before=$differing
  merge "$stage" "$target"
  left=$(files_in "$stage")
  if [ "$differing" -eq "$before" ] && [ "$left" -ne "$identical" ]; then
    fail "$label: something else is writing into $target"
  fi
  rm -rf "$stage"
}

main() {
  prepare
  every_link fetch
  every_link unpack
  if [ "$differing" -gt 0 ]; then
    fail "$differing file(s) in $extraction differ from the archived ones and were left as they are (named above)." \
      "All others are in place."
  fi
  say "done: the files are in $extraction. The archives in $downloads are needed no more."
}

main </dev/null
"""
