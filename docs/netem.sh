#!/bin/sh
# Measure over a slower link: the two parties in two network namespaces of this machine, joined by a link of the given
# rate and round-trip time (tc netem, half of the delay each way). Needs root and iproute2, and a kernel with
# namespaces, veth and sch_netem.
#
#   sudo docs/netem.sh lan|wan SUBJECT [options of mpcctl bench]
#   sudo docs/netem.sh RATE:DELAY SUBJECT ...          such as 400mbit:20ms
#
# lan: 1 Gbit/s, 1 ms; wan: 100 Mbit/s, 40 ms. MPCCTL: the command, default mpcctl. What mpcctl prints is printed.
set -eu

[ $# -ge 2 ] || { sed -n '2,11p' "$0" >&2; exit 2; }
case $1 in
    lan) rate=1gbit; delay=500us ;;
    wan) rate=100mbit; delay=20ms ;;
    *:*) rate=${1%%:*}; delay=$(echo "${1#*:}" | awk '{ u = $1; sub(/^[0-9.]+/, "", u); printf "%g%s", $1 / 2, u }') ;;
    *) echo "$0: $1 is not lan, wan or RATE:DELAY" >&2; exit 2 ;;
esac
shift
subject=$1
shift

mpcctl=${MPCCTL:-mpcctl}
owner=mpcd-model-$$ data=mpcd-data-$$
folder=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    ip netns del "$owner" 2>/dev/null || true
    ip netns del "$data" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ip netns add "$owner"
ip netns add "$data"
ip link add name eth0 netns "$owner" type veth peer name eth0 netns "$data"
for side in "$owner 10.77.0.1" "$data 10.77.0.2"; do
    # shellcheck disable=SC2086
    set -- $side "$@"
    namespace=$1 address=$2
    shift 2
    ip -n "$namespace" address add "$address/24" dev eth0
    ip -n "$namespace" link set lo up
    ip -n "$namespace" link set eth0 up
    # Room for a second of packets, so that TCP and not the queue decides.
    ip netns exec "$namespace" tc qdisc add dev eth0 root netem delay "$delay" rate "$rate" limit 100000 || {
        echo "$0: this kernel cannot shape the link (is sch_netem there?); try mpcctl bench --link, which needs no root" >&2
        exit 1
    }
done

ip netns exec "$owner" "$mpcctl" bench "$subject" "$@" --folder "$folder" --party 0 --listen 10.77.0.1:7443 2>/dev/null &
server=$!
ip netns exec "$data" "$mpcctl" bench "$subject" "$@" --folder "$folder" --party 1 --connect 10.77.0.1:7443
wait "$server"
server=
