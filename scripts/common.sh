# Shared by the scripts beside it: where things are kept, and the virtualenv.
# shellcheck shell=bash

# root's home is closed to the users that front servers become (Apache, nginx).
if [[ $(id -u) -eq 0 ]]; then
	cache=/var/cache/wsgigate
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/wsgigate
fi
venv=$cache/venv

# say prints what happens next.
say() { printf '\n== %s\n' "$*"; }

# die ends the script with a sentence.
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# system_python prints the interpreter for the virtualenv: the distribution's,
# which every user may run, before one of a version manager.
system_python() {
	if [[ -x /usr/bin/python3 ]]; then
		echo /usr/bin/python3
	else
		command -v python3 || die "Python 3 is missing: install it first"
	fi
}

# make_venv brings the virtualenv to the pinned packages; it does nothing if it
# has them. Nothing is installed outside of it.
make_venv() {
	local want stamp=$venv/requirements.sum
	local files=(integration/testdata/requirements.txt scripts/requirements-lint.txt)
	want=$({ "$(system_python)" --version; cat "${files[@]}"; } | sha256sum)
	mkdir -p "$cache"
	exec {lock}>"$cache/lock"
	flock "$lock"
	if [[ ! -x $venv/bin/python || $(cat "$stamp" 2>/dev/null) != "$want" ]]; then
		"$(system_python)" -m venv --clear "$venv"
		"$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check \
			"${files[@]/#/--requirement=}"
		echo "$want" >"$stamp"
	fi
	exec {lock}>&-
}
