#!/bin/sh
# Makes dist/mpcd-VERSION-linux-x86_64.tar.gz: everything that a machine without internet needs, but Python itself.
#
#   systemd/bundle.sh [--model] [--python PROGRAM] [--wheelhouse DIR] [--out DIR]
#
# --model: with torch, for the side that compiles models. --wheelhouse: take the dependencies' wheels from DIR, download
# nothing. The bundle is for the Python version that makes it.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=python3 wheelhouse='' out=$root/dist extra='' flavour=''
while [ $# -gt 0 ]; do
    case $1 in
    --model) extra='[model]' flavour=-model ;;
    --python | --wheelhouse | --out)
        [ $# -gt 1 ] || { echo "bundle.sh: $1 needs a value" >&2; exit 2; }
        case $1 in --python) python=$2 ;; --wheelhouse) wheelhouse=$2 ;; *) out=$2 ;; esac
        shift ;;
    *) echo "usage: bundle.sh [--model] [--python PROGRAM] [--wheelhouse DIR] [--out DIR]" >&2; exit 2 ;;
    esac
    shift
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy: building leaves things beside the sources.
mkdir "$work/source" "$work/wheels"
for part in kernels protocol daemon cli pyproject.toml README.md; do cp -R "$root/$part" "$work/source/"; done
mkdir "$work/source/docs" && cp -R "$root/docs/man" "$work/source/docs/"
find "$work/source" -name __pycache__ -prune -exec rm -rf {} +
isolation=''
"$python" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null &&
    isolation=--no-isolation # what pyproject.toml builds with is here
# shellcheck disable=SC2086
"$python" -m build --wheel $isolation --outdir "$work/wheels" "$work/source" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
wheel=$(echo "$work"/wheels/mpcd-*.whl)
version=$(basename "$wheel" | cut -d - -f 2)

if [ -n "$wheelhouse" ]; then
    find "$wheelhouse" -name '*.whl' -exec cp {} "$work/wheels/" \;
else
    "$python" -m pip download --quiet --disable-pip-version-check --only-binary :all: --dest "$work/wheels" "$wheel$extra"
fi

name=mpcd-$version-linux-x86_64$flavour
bundle=$work/$name
mkdir -p "$bundle/systemd" "$bundle/share" "$bundle/pip"
"$python" -c 'import ensurepip, glob, os
for wheel in glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), "_bundled", "pip-*.whl")): print(wheel)' |
    xargs -I '{}' cp '{}' "$bundle/pip/"
[ -n "$(ls "$bundle/pip")" ] ||
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$bundle/pip" pip
mv "$work/wheels" "$bundle/wheels"
cp "$root/systemd/install.sh" "$bundle/"
for file in "$root"/systemd/*; do
    case $file in *.sh) ;; *) cp "$file" "$bundle/systemd/" ;; esac
done
for page in "$root"/docs/man/*.[1-8]; do
    [ -e "$page" ] || continue
    mkdir -p "$bundle/share/man/man${page##*.}"
    cp "$page" "$bundle/share/man/man${page##*.}/"
done
echo "$version" >"$bundle/VERSION"
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$bundle/PYTHONS"
(cd "$bundle/wheels" && for file in *.whl; do
    hash=$(sha256sum "$file" | cut -d ' ' -f 1)
    echo "$file" | awk -F - -v hash="$hash" '{ print $1 "==" $2 " --hash=sha256:" hash }'
done) >"$bundle/requirements.txt"
(cd "$bundle" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum) >"$work/sums"
mv "$work/sums" "$bundle/SHA256SUMS"

mkdir -p "$out"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -cf - "$name" |
    gzip -n >"$out/$name.tar.gz.part"
mv "$out/$name.tar.gz.part" "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$out/$name.tar.gz"
