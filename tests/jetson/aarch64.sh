#!/usr/bin/env bash
# Install the runtime from a wheelhouse in an aarch64 Debian root under qemu-user, and run a bundle there on the CPU.
# usage: aarch64.sh TOWN WORK    TOWN: folder of `edge-infer demo`; WORK: kept from one time to the next
# Needs Linux 6.7, root (for debootstrap), and: debootstrap qemu-user-static. MIRROR: Debian's, if not the usual one.
set -euo pipefail

town=$(cd "$1" && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$work/root
python_version=3.11 # Debian 12's

if [[ ! -e $root/complete ]]; then
  echo "aarch64: a Debian root"
  rm -rf "$root"
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-venv,python3-dev,g++,make \
    bookworm "$root" ${MIRROR:+"$MIRROR"} > "$work/debootstrap.log"
  # Unpacked is enough to run compilers and Python; to configure 200 packages under emulation takes minutes.
  for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
  done
  rm -f "$root"/var/cache/apt/archives/*.deb
  : > "$root/complete"
fi

rm -rf "$work/wheelhouse"
"$here/../../jetson/wheelhouse.sh" --python "$python_version" --out "$work/wheelhouse"

cat > "$work/inside.sh" <<'TEXT'
set -euo pipefail
export PATH=/usr/local/bin:/usr/bin:/bin HOME=/root LC_ALL=C.UTF-8
uname -m
time /wheelhouse/install.sh --cpu
time /opt/edge-infer/bin/edge-infer run --model /town/town.edgemodel --imagery /town/imagery --footprints /town/footprints.gpkg \
  --out /results/aarch64.gpkg --overwrite --quiet
TEXT

# An emulator for this one namespace: the machine's own settings stay as they are.
cat > "$work/enter.sh" <<'TEXT'
set -euo pipefail
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
echo ":aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" > /proc/sys/fs/binfmt_misc/register
for folder in dev proc sys; do mount --rbind "/$folder" "$ROOT/$folder"; done
for folder in town wheelhouse results; do mkdir -p "$ROOT/$folder"; done
mount --bind "$TOWN" "$ROOT/town"
mount --bind "$WORK/wheelhouse" "$ROOT/wheelhouse"
mount --bind "$WORK/results" "$ROOT/results"
exec chroot "$ROOT" /bin/bash /inside.sh
TEXT
rm -rf "$work/results" # of an earlier time
mkdir -p "$work/results"
cp "$work/inside.sh" "$root/inside.sh"
# Of the processors that qemu knows, the one nearest to Orin's: no SVE.
QEMU_CPU=cortex-a76 ROOT=$root TOWN=$town WORK=$work \
  unshare --user --map-root-user --mount --net bash "$work/enter.sh"

"$here/../../.venv/bin/edge-infer" run --model "$town/town.edgemodel" --imagery "$town/imagery" \
  --footprints "$town/footprints.gpkg" --out "$work/results/here.gpkg" --quiet
"$here/../../.venv/bin/python" - "$work/results" <<'TEXT'
import sqlite3, sys

def rows(name):
    with sqlite3.connect(f"{sys.argv[1]}/{name}.gpkg") as data:
        (layer,) = data.execute("SELECT table_name FROM gpkg_contents WHERE data_type = 'features'").fetchone()
        return data.execute(f'SELECT class_label, confidence, status FROM "{layer}" ORDER BY source_fid').fetchall()

here, there = rows("here"), rows("aarch64")
same = sum(a[0] == b[0] and a[2] == b[2] for a, b in zip(here, there, strict=True))
shift = max(abs(a[1] - b[1]) for a, b in zip(here, there, strict=True) if a[1] is not None and b[1] is not None)
print(f"aarch64: {same} of {len(here)} footprints as on this machine; largest shift of a confidence {shift:.1e}")
sys.exit(same != len(here))
TEXT
