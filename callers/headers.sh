#!/bin/sh
# callers/headers.sh FOLDER: unpacks there, without root, onnxruntime's C header and stb's reader of PNG files, out of signed
# packages of the system. One that has no such header, as Debian 12, takes them from Debian 13 on the same mirror; Ubuntu
# needs DEBIAN_MIRROR, the address of one. Run `apt-get update` first where apt knows no packages.
set -e
mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
cd "$1"
if apt-cache show libonnxruntime-dev >/dev/null 2>&1; then
  apt-get -q download libonnxruntime-dev libstb-dev
else
  address=$(apt-get -q download --print-uris debian-archive-keyring)
  address=${address#\'}
  apt-get -q download debian-archive-keyring
  dpkg-deb -x debian-archive-keyring_*.deb .
  key=$(find "$PWD/usr/share/keyrings" -name 'debian-archive-keyring.*g*' | head -n 1)
  echo "deb [signed-by=$key] ${DEBIAN_MIRROR:-${address%%/pool/*}} trixie main" > sources.list
  for what in update "download libonnxruntime-dev libstb-dev"; do
    apt-get -q -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$PWD/lists" \
      -o Dir::Cache="$PWD/cache" $what
  done
fi
for package in lib*.deb; do dpkg-deb -x "$package" .; done
rm -rf lists cache
