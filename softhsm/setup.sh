# Sourced by softhsm/run and tests/run: what this machine and this folder need.

root=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
venv=$root/.venv
unset "${!PYTHON@}"

# Debian's Python, which every user can read, else whichever comes first.
python3=/usr/bin/python3
"$python3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python3=python3

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "$@"
  exit 1
}

# One at a time may set up; the others wait.
lock_setup() {
  exec 9<"$root"
  flock 9
}
unlock_setup() { exec 9<&-; }

# need_packages [softhsm2] [PACKAGE=FILE …]: Debian's packages, where they (that file) are missing.
need_packages() {
  local missing=() wanted
  if ! command -v "$python3" >/dev/null; then
    missing+=(python3 python3-venv)
  elif [[ ! -x $venv/bin/python ]] && ! "$python3" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
  fi
  if [[ " $* " == *' softhsm2 '* ]] && ! command -v softhsm2-util >/dev/null; then
    missing+=(softhsm2)
  fi
  for wanted; do
    [[ $wanted != *=* ]] || compgen -G "${wanted#*=}" >/dev/null || missing+=("${wanted%%=*}")
  done
  ((${#missing[@]})) || return 0
  local command="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  ((EUID == 0)) || fail "missing here; as root: $command"
  say "$command"
  DEBIAN_FRONTEND=noninteractive bash -c "$command" >&2 || fail 'that failed; fix the cause and run this again'
}

# need_venv [dev]: the project in $venv, with what its development needs.
need_venv() {
  local extra=${1:-} stamp wanted
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    "$python3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      fail "Python 3.11 or newer is needed; $(command -v "$python3") is $("$python3" --version)"
    say "making $venv"
    "$python3" -m venv --clear "$venv" || fail "$python3 -m venv $venv failed"
  fi
  wanted="$root $("$venv/bin/python" --version) $(sha256sum <"$root/pyproject.toml")"
  for stamp in "$venv/installed-dev" "$venv/installed-$extra"; do
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  done
  say "installing dpop-agent${extra:+ and what its tests need} into $venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable "$root${extra:+[$extra]}" >&2 || fail 'pip failed; fix the cause and run this again'
  printf '%s\n' "$wanted" >"$venv/installed-$extra"
}
