#!/usr/bin/env bash
# On the device, without a network: install edge-infer from the folder that this file lies in.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: install.sh [--prefix FOLDER] [--cpu] [--architecture N] [--service]

Installs from this folder alone; jetson/wheelhouse.sh of the project fills it.

  --prefix FOLDER  where to (default: /opt/edge-infer); an installation there is replaced
  --cpu            without TensorRT and CUDA: the CPU runs the model
  --architecture N where the board does not tell (in a container): 87 for Orin, 110 for Thor
  --service        install the systemd unit too: runs that go on after a power cut
TEXT
}

fail() {
  echo "install: $*" >&2
  exit 2
}

prefix=/opt/edge-infer
with_gpu=yes
architecture=
with_service=
while (($#)); do
  case $1 in
    --prefix) prefix=${2:?--prefix wants a folder}; shift 2 ;;
    --cpu) with_gpu=; shift ;;
    --architecture) architecture=${2:?--architecture wants a number}; shift 2 ;;
    --service) with_service=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
done

prefix=$(realpath -m -- "$prefix") # here, as it is the caller's folder that it is relative to
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"
umask 022 # root's may be stricter, and others are to run it
unset PYTHONPATH PYTHONHOME
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$here/wheels" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
export PIP_ROOT_USER_ACTION=ignore

# --- what there is, and what is missing: all of it is said before anything is changed ---
[[ -f SHA256SUMS ]] || fail "this folder has no SHA256SUMS; jetson/wheelhouse.sh makes it on a machine with a network"
damaged=$(LC_ALL=C sha256sum --check --quiet SHA256SUMS 2> /dev/null) || fail "damaged or missing, copy the folder again: $damaged"
# Two wheelhouses in one folder: which of two versions is meant, nobody knows.
strays=()
for file in wheels/*.whl wheels/*.tar.gz; do
  [[ ! -f $file ]] || grep -qF "  $file" SHA256SUMS || strays+=("$file")
done
((${#strays[@]} == 0)) || fail "left from another wheelhouse; remove them, or copy this one to an empty folder: ${strays[*]}"
[[ $(uname -m) == aarch64 ]] || fail "this is $(uname -m), the wheels are for aarch64; elsewhere: pip install . in the project"
version=$(< python-version)
python=$(command -v "python$version") || fail "no python$version here; this folder is for JetPack's Python $version (another: wheelhouse.sh --python)"
built=built/cpu # named after all that it depends on: what was built of other sources is not taken
system_packages=()
missing=()
if [[ $with_gpu ]]; then
  system_packages=(--system-site-packages) # JetPack's TensorRT is a package of the system's Python
  PATH=$PATH:/usr/local/cuda/bin
  if [[ ! $architecture ]]; then # the board's GPU by its system on chip
    compatible=$(tr '\0' ' ' < /proc/device-tree/compatible 2> /dev/null || true)
    case $compatible in
      *tegra234*) architecture=87 ;;
      *tegra264*) architecture=110 ;;
      *) fail "the board '${compatible:-unknown}' is neither Orin nor Thor; give --architecture, or --cpu to run without its GPU" ;;
    esac
  fi
  release=$(sed -n 's/^# R\([0-9]*\).*REVISION: \([0-9.]*\).*/\1.\2/p' /etc/nv_tegra_release 2> /dev/null || true)
  built=built/sm$architecture-L4T${release:-unknown}
  if ! tensorrt=$("$python" -c 'import tensorrt; print(tensorrt.__version__)' 2>&1); then
    missing+=("TensorRT for $python (apt install python3-libnvinfer, or nvidia-jetpack); 'import tensorrt' says: ${tensorrt##*$'\n'}")
  fi
fi
wheelhouse=$(sha256sum SHA256SUMS)
built=$built-${wheelhouse:0:12}
if [[ -e $built ]]; then
  damaged=$(cd "$built" && LC_ALL=C sha256sum --check --quiet SHA256SUMS 2> /dev/null) \
    || fail "$here/$built is damaged; copy it again, or remove it to have it built anew: $damaged"
else
  command -v g++ > /dev/null || missing+=("g++ (apt install build-essential)")
  header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
  [[ -f $header ]] || missing+=("Python.h (apt install python$version-dev)")
  [[ ! $with_gpu ]] || command -v nvcc > /dev/null || missing+=("nvcc (apt install nvidia-jetpack, or cuda-toolkit)")
fi
if ((${#missing[@]})); then
  printf 'install: missing: %s\n' "${missing[@]}" >&2
  fail "install these while there is a network; without the GPU: --cpu"
fi
[[ ! -e $prefix || -e $prefix/pyvenv.cfg || -z $(ls -A "$prefix") ]] || fail "$prefix holds something else; name another --prefix"
{ mkdir -p "$prefix" && [[ -w $prefix ]]; } 2> /dev/null || fail "$prefix cannot be written; use sudo, or --prefix"
[[ -z $with_service || -w /etc/systemd/system ]] || fail "/etc/systemd/system cannot be written; use sudo, or leave out --service"

# --- the wheels that are built on a device, kept for the next one ---
pip_wheel=$(echo wheels/pip-*.whl)
if [[ ! -e $built ]]; then
  echo "install: building edge-infer${with_gpu:+ and pycuda for sm_$architecture} (some minutes)"
  build_env=$(mktemp -d)
  trap 'rm -rf "$build_env"' EXIT
  "$python" -m venv --without-pip "$build_env" # without: JetPack may lack python3-venv
  rm -rf "$built.partial"
  mkdir -p "$built.partial" || fail "$here/built cannot be written; copy the folder to a disk with room"
  sources=(wheels/edge_infer-*.tar.gz)
  if [[ $with_gpu ]]; then
    sources+=(wheels/pycuda-*.tar.gz)
    export EDGE_INFER_CUDA=ON EDGE_INFER_CUDA_ARCHITECTURES=$architecture
    CUDA_ROOT=$(dirname "$(dirname "$(command -v nvcc)")")
    export CUDA_ROOT
  else
    export EDGE_INFER_CUDA=OFF
  fi
  "$build_env/bin/python" "$pip_wheel/pip" wheel --quiet --no-deps --wheel-dir "$built.partial" "${sources[@]}"
  (cd "$built.partial" && sha256sum ./*.whl > SHA256SUMS)
  mv "$built.partial" "$built"
fi

# --- the environment ---
echo "install: into $prefix"
"$python" -m venv --clear --without-pip "${system_packages[@]}" "$prefix"
# The system's own packages are hidden by ours, so that every device runs the same versions.
"$prefix/bin/python" "$pip_wheel/pip" install --quiet --ignore-installed \
  --constraint requirements.txt "$built"/*.whl
"$prefix/bin/edge-infer" --version
[[ ! $with_gpu ]] || echo "TensorRT ${tensorrt##*$'\n'}, of the system"
[[ ! -w /usr/local/bin ]] || ln -sf "$prefix/bin/edge-infer" /usr/local/bin/edge-infer

if [[ $with_service ]]; then
  install -d /etc/edge-infer /var/cache/edge-infer
  sed "s,/opt/edge-infer,$prefix," edge-infer@.service > /etc/systemd/system/edge-infer@.service
  [[ ! -d /run/systemd/system ]] || systemctl daemon-reload
  echo "install: service edge-infer@NAME; its job stands in /etc/edge-infer/NAME.env (see the unit's first lines)"
fi

echo "install: done. What this device has:"
"$prefix/bin/edge-infer" doctor || true # what it finds is for a person to read; the installation stands
