#!/bin/sh
# Installs what is missing of packages.txt (or of the list given), and says what it did. Needs root when something is.
set -eu

list=${1:-"$(dirname "$0")/packages.txt"}
missing=
for package in $(sed 's/#.*//' "$list"); do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
        missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "all Debian packages are there"
    exit 0
fi
echo "installing:$missing"

install() {
    # The tests start their own containerd, etcd and registry. Runlevel 1 keeps packages from starting theirs where
    # there is no systemd; where there is, they run beside ours and are not touched.
    # shellcheck disable=SC2086 # a list of words
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -q -q -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 \
        install --yes --no-install-recommends $missing
}
# The lists may be missing or older than what the mirror still has.
install || { apt-get -q -q -o Acquire::Retries=5 update && install; }
