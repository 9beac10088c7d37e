#!/bin/sh
# Installs, upgrades or removes mpcd from this bundle, on a machine that needs no internet.
#
#   ./install.sh [--python PROGRAM] [--prefix DIR] [--root DIR]
#   ./install.sh uninstall [--purge [--yes]] [--prefix DIR] [--root DIR]
#
# Versions lie side by side under PREFIX/versions; the link PREFIX/current is switched last, so that an installation that
# fails or is interrupted leaves the version before at work. --root puts everything under another folder and touches
# neither users nor services: for trying, and for images that are started from that folder.
set -eu
umask 022

usage="usage: install.sh [uninstall [--purge [--yes]]] [--python PROGRAM] [--prefix DIR] [--root DIR]"
action=install prefix=/opt/mpcd root='' python=python3 purge=no yes=no
while [ $# -gt 0 ]; do
    case $1 in
    install | uninstall) action=$1 ;;
    --prefix | --root | --python)
        [ $# -gt 1 ] || { echo "install.sh: $1 needs a value" >&2; exit 2; }
        case $1 in --prefix) prefix=$2 ;; --root) root=$2 ;; *) python=$2 ;; esac
        shift ;;
    --purge) purge=yes ;;
    --yes) yes=yes ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) echo "install.sh: unknown word $1; $usage" >&2; exit 2 ;;
    esac
    shift
done

say() { echo "mpcd: $*"; }
fail() { echo "mpcd: $*" >&2; exit 1; }

case $prefix in
/*[!/]*) ;;
*) fail "--prefix $prefix is not allowed: an absolute path that is not / itself" ;;
esac
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    fail "run this as root, or with --root to try it in a folder of yours"
fi
if [ -n "$root" ]; then
    mkdir -p "$root"
    root=$(cd "$root" && pwd)
fi

here=$(cd "$(dirname "$0")" && pwd)
home=$root$prefix
state=$root/var/lib/mpcd
cache=$root/var/cache/mpcd
config=$root/etc/mpcd
# Beside the distribution's own, so that /etc stays the administrator's for drop-ins.
lib=$root/usr/local/lib
share=$root/usr/local/share
units="mpcd.service mpcd-offline.service mpcd-offline.timer"

services() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

install_mpcd() {
    version=$(cat "$here/VERSION")
    (cd "$here" && sha256sum --quiet --strict -c SHA256SUMS) ||
        fail "this bundle is damaged: fetch it again"
    [ "$(uname -m)" = x86_64 ] || fail "this bundle is for x86_64, this machine is $(uname -m)"
    command -v "$python" >/dev/null || fail "there is no $python: install Python, or name one with --python"
    tag=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    grep -qxF "$tag" "$here/PYTHONS" ||
        fail "$python is Python $tag, this bundle is for Python $(paste -sd ' ' "$here/PYTHONS"): name another with --python"
    "$python" -c 'import venv' 2>/dev/null || fail "$python cannot make virtual environments: its module venv is missing"

    # A version by its files, too: two builds of the same number do not overwrite each other.
    new=$version-$(sha256sum "$here/SHA256SUMS" | cut -c 1-12)
    folder=$home/versions/$new
    old=$(readlink "$home/current" 2>/dev/null || true)
    old=${old#versions/}
    if [ ! -e "$folder/complete" ]; then
        rm -rf "$folder"
        mkdir -p "$home/versions"
        [ "$old" = "$new" ] || trap 'rm -rf "$folder"; fail "not installed${old:+; $old stays}"' EXIT
        # The bundle's own pip, out of its wheel: Debian's Python has none to put there.
        "$python" -m venv --without-pip "$folder"
        wheel=$(echo "$here"/pip/pip-*.whl)
        pip() { PIP_CONFIG_FILE=/dev/null "$folder/bin/python" "$wheel/pip" --disable-pip-version-check "$@"; }
        pip install --quiet --no-cache-dir --no-index --find-links "$here/wheels" --require-hashes --no-deps \
            -r "$here/requirements.txt"
        pip check >/dev/null
        "$folder/bin/mpcd" --version >/dev/null
        "$folder/bin/mpcctl" --help >/dev/null
        "$folder/bin/python" -c 'import mpcd.daemon.service'
        cp "$here/install.sh" "$folder/install.sh"
        touch "$folder/complete"
        trap - EXIT
    fi

    install -d "$lib/systemd/system" "$lib/sysusers.d" "$lib/tmpfiles.d"
    for unit in $units; do
        if [ "$prefix" = /opt/mpcd ]; then
            install -m 644 "$here/systemd/$unit" "$lib/systemd/system/$unit"
        else
            sed "s|/opt/mpcd/|$prefix/|g" "$here/systemd/$unit" >"$lib/systemd/system/$unit"
            chmod 644 "$lib/systemd/system/$unit"
        fi
        [ ! -e "$root/etc/systemd/system/$unit" ] ||
            say "note: /etc/systemd/system/$unit goes before the one of this version; remove it unless it is meant"
    done
    install -m 644 "$here/systemd/mpcd.sysusers" "$lib/sysusers.d/mpcd.conf"
    install -m 644 "$here/systemd/mpcd.tmpfiles" "$lib/tmpfiles.d/mpcd.conf"
    (cd "$here/share" && find . -type f) | while read -r file; do
        install -D -m 644 "$here/share/$file" "$share/$file"
    done
    completion bash bash-completion/completions/mpcctl
    completion zsh zsh/site-functions/_mpcctl
    completion fish fish/vendor_completions.d/mpcctl.fish
    if [ -n "$root" ]; then
        install -d -m 700 "$state" "$cache"
        install -d "$config"
    else
        if command -v systemd-sysusers >/dev/null; then
            systemd-sysusers "$lib/sysusers.d/mpcd.conf"
        elif ! id mpcd >/dev/null 2>&1; then
            useradd --system --home-dir /var/lib/mpcd --shell /usr/sbin/nologin mpcd
        fi
        install -d -m 700 -o mpcd -g mpcd "$state" "$cache"
        install -d -m 750 -o root -g mpcd "$config"
    fi
    [ -e "$config/mpcd.toml" ] || install -m 644 "$here/systemd/mpcd.toml" "$config/mpcd.toml"

    switch "$new"
    if services; then
        systemctl daemon-reload
        if systemctl --quiet is-active mpcd && ! systemctl restart mpcd; then
            [ -n "$old" ] && [ "$old" != "$new" ] || fail "$new does not start: journalctl -u mpcd"
            switch "$old"
            systemctl restart mpcd || true
            fail "$new does not start (journalctl -u mpcd); $old is at work again"
        fi
    fi
    ln -sfn current/bin "$home/bin"
    ln -sfn current/install.sh "$home/install.sh"
    for folder in "$home"/versions/*; do # the one before stays, to go back to
        case ${folder##*/} in "$new" | "$old") ;; *) rm -rf "$folder" ;; esac
    done
    say "$new is installed in $prefix${old:+ (before: $old)}"
    if services && systemctl --quiet is-active mpcd; then
        say "it runs"
    else
        say "to start it: systemctl enable --now mpcd"
    fi
}

# A shell's completion of mpcctl's words.
completion() {
    install -d "$(dirname "$share/$2")"
    "$folder/bin/mpcctl" completion "$1" >"$share/$2"
}

# In one step: a program that is started meanwhile finds the old one or the new one.
switch() {
    ln -sfn "versions/$1" "$home/.current"
    mv -T "$home/.current" "$home/current"
}

uninstall_mpcd() {
    if [ $purge = yes ] && [ $yes = no ]; then
        echo "This deletes $state and $config for good: identity, peers, models, data sets' indices, the ledger, all records."
        printf "Type 'delete mpcd' to go on: "
        read -r answer || answer=''
        [ "$answer" = "delete mpcd" ] || fail "nothing was removed"
    fi
    if services; then
        # shellcheck disable=SC2086
        systemctl disable --now --quiet $units 2>/dev/null || true
    fi
    for unit in $units; do rm -f "$lib/systemd/system/$unit"; done
    rm -f "$lib/sysusers.d/mpcd.conf" "$lib/tmpfiles.d/mpcd.conf" \
        "$share/bash-completion/completions/mpcctl" "$share/zsh/site-functions/_mpcctl" \
        "$share/fish/vendor_completions.d/mpcctl.fish" "$share"/man/man?/mpcd*.? "$share"/man/man?/mpcctl*.?
    rm -rf "$home/versions" "$cache"
    rm -f "$home/current" "$home/bin" "$home/install.sh"
    rmdir "$home" 2>/dev/null || true
    if services; then systemctl daemon-reload; fi
    if [ $purge = yes ]; then
        rm -rf "$state" "$config"
        [ -n "$root" ] || ! id mpcd >/dev/null 2>&1 || userdel mpcd
        say "removed, with everything that it held"
    else
        say "removed; kept: ${state#"$root"} and ${config#"$root"} (uninstall --purge deletes them)"
    fi
}

if [ "$action" = install ]; then
    install_mpcd
else
    uninstall_mpcd
fi
