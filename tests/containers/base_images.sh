#!/bin/sh
# Makes stand-ins for the public base images where no container registry is reached. For tests only; a release uses
# the public images.
#
#   base_images.sh PREFIX     PREFIX: where a relocatable CPython 3.12 is installed, such as the output of `pyenv prefix 3.12`
#
# Result: two local images under the names that the Dockerfiles use, so that these stay as they are:
#   debian:bookworm-slim          a minimal Debian 12
#   python:3.12-slim-bookworm     the same with that CPython in /usr/local
# Needs: root, a running docker engine, mmdebstrap, a Debian mirror. Takes about half a minute, leaves nothing but the images.
# This machine's certificate bundle is copied in: builds behind a proxy that inspects TLS work without build arguments.
set -eu
prefix=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
certificates=/etc/ssl/certs/ca-certificates.crt
# The mirror that apt uses here, else mmdebstrap's own choice.
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)

# Without what the slim images lack as well.
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --include=ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,netbase,tzdata,zlib1g \
    bookworm "$root" ${mirror:+"$mirror"}
cp "$certificates" "$root$certificates"
# As in the public images: apt keeps no archives and no caches.
cat >"$root/etc/apt/apt.conf.d/docker-clean" <<'EOF'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
EOF
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -c . | docker import --change 'CMD ["bash"]' - debian:bookworm-slim >/dev/null

tar -C "$prefix" --exclude='lib/python*/test' --exclude='lib/python*/site-packages/*' --exclude='*/__pycache__' \
    --exclude='lib/*.a' --exclude='lib/python*/config-*' --exclude=share -c bin lib include | tar -C "$root/usr/local" -x
# Programs of packages carry the old prefix; pip comes again from the interpreter itself.
find "$root/usr/local/bin" -type f ! -name 'python3*' -delete
chroot "$root" ldconfig
chroot "$root" env PIP_ROOT_USER_ACTION=ignore /usr/local/bin/python3 -m ensurepip >/dev/null
ln -sf python3 "$root/usr/local/bin/python"
ln -sf pip3 "$root/usr/local/bin/pip"
tar -C "$root" -c . | docker import --change 'CMD ["python3"]' \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change "ENV SSL_CERT_FILE=$certificates" --change "ENV PIP_CERT=$certificates" \
    - python:3.12-slim-bookworm >/dev/null
