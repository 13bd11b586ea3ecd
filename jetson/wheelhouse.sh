#!/usr/bin/env bash
# On a machine with a network, of any architecture: collect all that a device without one needs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: jetson/wheelhouse.sh [--python VERSION] [--out FOLDER]

Collects every aarch64 wheel, the sources of pycuda and of edge-infer, and install.sh in one folder.

  --python VERSION  Python of the device: 3.10 for JetPack 6.1 and 6.2 (default), 3.12 for JetPack 7.2
  --out FOLDER      where to (default: wheelhouse-cp310, wheelhouse-cp312)
TEXT
}

fail() {
  echo "wheelhouse: $*" >&2
  exit 2
}

python_version=3.10
out=
while (($#)); do
  case $1 in
    --python) python_version=${2:?--python wants a version, such as 3.10}; shift 2 ;;
    --out) out=${2:?--out wants a folder}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
done
[[ $python_version =~ ^3\.1[0-9]$ ]] || fail "found --python $python_version, wanted 3.10 to 3.19"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
tag=cp${python_version/./}
out=${out:-wheelhouse-$tag}
[[ ! -e $out/SHA256SUMS ]] || fail "$out is complete already; remove it or name another with --out"
mkdir -p "$out/wheels"
out=$(cd "$out" && pwd)
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

echo "wheelhouse: which versions serve Python $python_version on aarch64"
# uv answers for another Python and platform than those it runs on; pip reads the conditions of a package
# ("only for Python below 3.11") as those of the machine it runs on.
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" pip uv
"$tools/bin/uv" pip compile --quiet --no-header --no-annotate --only-binary :all: \
  --python-version "$python_version" --python-platform aarch64-manylinux_2_35 \
  --constraint "$root/constraints.txt" "$root/pyproject.toml" "$here/requirements.txt" \
  --output-file "$out/requirements.txt" > /dev/null

echo "wheelhouse: $(wc -l < "$out/requirements.txt") wheels"
# glibc 2.35 is Ubuntu 22.04, the older of the two systems.
platforms=(--platform manylinux2014_aarch64)
for minor in {17..35}; do
  platforms+=(--platform "manylinux_2_${minor}_aarch64")
done
"$tools/bin/python" -m pip download --quiet --no-deps --only-binary :all: --implementation cp \
  --python-version "$python_version" --abi "$tag" --abi abi3 --abi none "${platforms[@]}" \
  --dest "$out/wheels" --requirement "$out/requirements.txt"

echo "wheelhouse: sources of pycuda and of edge-infer, to be built on one device"
"$tools/bin/python" -m pip download --quiet --no-deps --no-binary pycuda \
  --constraint "$root/constraints.txt" --dest "$out/wheels" pycuda
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml" | head -1)
tar -czf "$out/wheels/edge_infer-$version.tar.gz" -C "$root" --exclude='*.so' --exclude='*.fatbin' \
  --exclude='__pycache__' --transform "s,^,edge_infer-$version/," \
  pyproject.toml CMakeLists.txt README.md LICENSE edge_infer

cp "$here/install.sh" "$here/edge-infer@.service" "$here/Dockerfile" "$here/README.md" "$out/"
echo "$python_version" > "$out/python-version"
(cd "$out" && find . -type f ! -name 'SHA256SUMS*' ! -path './built/*' -printf '%P\n' | LC_ALL=C sort \
  | xargs -d '\n' sha256sum > SHA256SUMS.partial && mv SHA256SUMS.partial SHA256SUMS)

cat <<TEXT
wheelhouse: $out is complete, $(du -sh "$out" | cut -f1).
Copy the folder to a device with Python $python_version and run there: sudo bash install.sh
It builds two wheels, pycuda and edge-infer, and keeps them in the folder under built/: copy the folder
from that device to the next one with the same JetPack, and nothing is built there.
TEXT
