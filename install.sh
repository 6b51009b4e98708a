#!/bin/sh
# install.sh: installs hostd on this machine, as a service where systemd runs.
#
#   sh install.sh                   install or upgrade; asks before it installs system packages
#   sh install.sh --dry-run         say what would be done, change nothing
#   sh install.sh --deps-only       system packages only
#   sh install.sh --develop DIR     system packages, then an environment in DIR for work on hostd itself
#   sh install.sh --uninstall       remove all of it, data included
#   sh install.sh --sweep DIR       remove what a killed daemon of this run directory left
#
# Options:
#   --prefix DIR      where the program goes                      (/opt/hostd)
#   --data-dir DIR    where images, blobs and state go            (/var/lib/hostd)
#   --source PATH     project directory or wheel to install       (the directory of this script)
#   --python PATH     interpreter to use, 3.11 or newer           (the first suitable one)
#   --no-start        install the service, do not start it
#   --keep-data       with --uninstall: keep the data directory
#   --yes, -y         do not ask
#   --quiet, -q       print warnings and errors only
#   --help, -h        this text
#
# pip and the package manager are used as they are configured on the machine. Proxy variables of the
# environment (http_proxy, https_proxy, no_proxy) are kept for the service in /etc/hostd/hostd.env.
# Safe to run twice. All of it is in functions and the last line calls main: a script that was cut
# off on its way does nothing.
#
# Exit status: 0 done, 2 usage, 3 this machine is not suitable, 5 a step failed, 6 the service did
# not become ready.

set -eu

UNIT=/etc/systemd/system/hostd.service
CONFIG_DIR=/etc/hostd
RUN_DIR=/run/hostd
LINK_DIR=/usr/local/bin
GROUP=hostd # its members may use the daemon's socket
READY_WAIT_S=60

say() { [ "$quiet" = 1 ] || printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    status=$1
    shift
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit "$status"
}
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command, or prints it under --dry-run. Standard input is closed: this script may itself
# be what a pipe feeds to the shell.
run() {
    if [ "$dry_run" = 1 ]; then
        say "would run: $*"
    else
        "$@" </dev/null
    fi
}
run_as_root() {
    if [ "$(id -u)" = 0 ]; then
        run "$@"
    elif have sudo; then
        run sudo "$@"
    elif have doas; then
        run doas "$@"
    elif have run0; then
        run run0 "$@"
    else
        die 3 "installing needs root" "run this script as root"
    fi
}

# Writes standard input to a file, whole or not at all; a file with this content stays as it is.
write_file() {
    path=$1
    mode=$2
    content=$(cat)
    if [ -f "$path" ] && [ "$(cat "$path" 2>/dev/null || true)" = "$content" ]; then
        return 0
    fi
    if [ "$dry_run" = 1 ]; then
        say "would write: $path"
        return 0
    fi
    mkdir -p "$(dirname "$path")"
    (umask 077 && printf '%s\n' "$content" >"$path.new")
    chmod "$mode" "$path.new"
    mv "$path.new" "$path"
}

usage() { sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$self"; }

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --prefix | --data-dir | --source | --python | --develop | --sweep)
            [ $# -ge 2 ] || die 2 "$1 needs a value" "sh install.sh --help"
            case $1 in
            --prefix) prefix=$(absolute "$2") ;;
            --data-dir) data_dir=$(absolute "$2") ;;
            --source) source=$(absolute "$2") ;;
            --python) python=$2 ;;
            --develop) action=develop environment=$(absolute "$2") ;;
            --sweep) action=sweep run_dir=$(absolute "$2") ;;
            esac
            shift
            ;;
        --dry-run) dry_run=1 ;;
        --no-start) start=0 ;;
        --deps-only) action=packages ;;
        --uninstall) action=uninstall ;;
        --keep-data) keep_data=1 ;;
        --yes | -y) yes=1 ;;
        --quiet | -q) quiet=1 ;;
        --help | -h) action=usage ;;
        *) die 2 "$1 is not an option of install.sh" "sh install.sh --help" ;;
        esac
        shift
    done
    check_directory "$prefix"
    check_directory "$data_dir"
}

# Refuses directories that are not hostd's own: these are removed whole.
check_directory() {
    case $1 in
    / | /bin | /boot | /dev | /etc | /home | /lib* | /opt | /proc | /root | /run | /sbin | /srv | /sys | /tmp | /usr | /usr/bin | /usr/lib* | /usr/local | /usr/local/bin | /usr/sbin | /usr/share | /var | /var/lib)
        die 2 "$1 cannot be a directory of hostd's own" "name one below it, such as ${1%/}/hostd"
        ;;
    esac
}

absolute() {
    case $1 in
    /*) path=$1 ;;
    *) path=$(pwd)/$1 ;;
    esac
    while [ "$path" != "${path%/}" ]; do path=${path%/}; done
    printf '%s\n' "${path:-/}"
}

# --- the machine ---------------------------------------------------------------------------------

check_machine() {
    [ "$(uname -s)" = Linux ] || die 3 "this is $(uname -s), hostd runs on Linux" "install the client alone: pip install hostd"
    case $(uname -m) in
    x86_64 | aarch64) ;;
    *) warn "$(uname -m) is not tested; x86_64 and aarch64 are" ;;
    esac
    kernel=$(uname -r)
    major=${kernel%%.*}
    minor=${kernel#*.}
    minor=${minor%%[!0-9]*}
    if [ "$major" -lt 5 ] || { [ "$major" = 5 ] && [ "$minor" -lt 11 ]; }; then
        die 3 "the kernel is $kernel, hostd needs 5.11 or newer" "install a newer kernel of your distribution"
    fi
    if have apt-get; then
        packager=apt
    elif have dnf; then
        packager=dnf
    else
        packager=none
    fi
    has_systemd=0
    [ ! -d /run/systemd/system ] || has_systemd=1
}

# --- system packages -----------------------------------------------------------------------------

# An OCI runtime is there already when runc is, or when Docker's own packages bring one (they conflict
# with the distribution's runc).
runc_package() {
    if have runc; then return 0; fi
    if [ "$packager" = apt ] && dpkg-query -W -f '${Status}\n' containerd.io 2>/dev/null | grep -q ' installed$'; then
        return 0
    fi
    echo runc
}

wanted_packages() {
    runc_package
    if [ "$packager" = dnf ]; then
        echo crun catatonit fuse3 fuse3-devel pkgconf-pkg-config gcc redhat-rpm-config python3 python3-devel \
            mmdebstrap nftables libseccomp ca-certificates iproute
    else
        echo crun catatonit fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv \
            mmdebstrap nftables libseccomp2 ca-certificates iproute2
    fi
}

is_installed() {
    if [ "$packager" = dnf ]; then
        rpm -q --whatprovides "$1" >/dev/null 2>&1
    else
        dpkg-query -W -f '${Status}\n' "$1" 2>/dev/null | grep -q ' installed$'
    fi
}

missing_packages() {
    for package in $(wanted_packages); do
        is_installed "$package" || printf '%s ' "$package"
    done
}

install_packages() {
    if [ "$packager" = none ]; then
        warn "neither apt-get nor dnf is here; install these yourself: runc or crun, catatonit, fuse3 with headers, pkg-config, gcc, python3 with headers and venv, mmdebstrap, nftables, libseccomp, iproute2"
        return 0
    fi
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        say "system packages: all there"
        return 0
    fi
    say "system packages to install: $missing"
    consent
    # shellcheck disable=SC2086  # a list of names on purpose
    case $packager in
    apt)
        run_as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update ||
            warn "apt-get update failed; going on with the lists that are there"
        run_as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
            install --no-install-recommends $missing || die 5 "apt-get could not install: $missing"
        ;;
    dnf) run_as_root dnf -q -y --setopt=install_weak_deps=False install $missing || die 5 "dnf could not install: $missing" ;;
    esac
}

consent() {
    if [ "$yes" = 1 ] || [ "$dry_run" = 1 ]; then return 0; fi
    if ! (: </dev/tty) 2>/dev/null; then
        die 2 "there is no terminal to ask on" "add --yes to install them without a question"
    fi
    printf 'Install them now? [Y/n] ' >/dev/tty
    read -r answer </dev/tty || answer=n
    case $answer in
    '' | y | Y | yes) ;;
    *) die 3 "nothing was installed" ;;
    esac
}

# --- the program ---------------------------------------------------------------------------------

# Whether an interpreter is new enough and can make environments and compile extensions.
is_suitable() {
    "$1" -c 'import ensurepip, os, sys, sysconfig, venv
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))' >/dev/null 2>&1
}

find_python() {
    if [ -n "$python" ]; then
        is_suitable "$python" || die 3 "$python is not Python 3.11 or newer with venv and headers"
        return 0
    fi
    for candidate in /usr/bin/python3 python3 python3.11 python3.12 python3.13 python3.14; do
        if have "$candidate" && is_suitable "$candidate"; then
            python=$(command -v "$candidate")
            return 0
        fi
    done
    if [ "$dry_run" = 1 ]; then
        python=python3
        return 0
    fi
    die 3 "no Python 3.11 or newer with venv and headers is here" "install one and name it with --python PATH"
}

find_source() {
    [ -n "$source" ] || source=$(cd "$(dirname "$self")" 2>/dev/null && pwd) || source=
    case $source in
    *.whl) [ -f "$source" ] || die 2 "$source is not there" ;;
    *)
        if [ ! -f "$source/pyproject.toml" ] || [ ! -d "$source/hostd" ]; then
            die 2 "${source:-the directory of this script} has no pyproject.toml of hostd" "name the project directory or a wheel with --source PATH"
        fi
        ;;
    esac
}

make_environment() {
    if [ -x "$1/bin/python" ] && "$1/bin/python" -c 'import pip' >/dev/null 2>&1; then return 0; fi
    run "$python" -m venv --clear "$1" || die 5 "$python could not make an environment in $1"
}

pip_install() {
    where=$1
    shift
    run "$where/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" ||
        die 5 "pip could not install hostd into $where" "see its message above; pip's own settings (pip config list) apply"
}

project_version() {
    case $source in
    *.whl) basename "$source" | cut -d- -f2 ;;
    *) sed -n 's/^version = "\(.*\)"$/\1/p' "$source/pyproject.toml" | head -n 1 ;;
    esac
}

develop() {
    find_source
    find_python
    say "environment: $environment ($python)"
    make_environment "$environment"
    requirements=$environment/dev-requirements.txt
    if [ "$dry_run" = 1 ]; then
        say "would write: $requirements"
    else
        # Older pips do not know dependency groups.
        "$environment/bin/python" -c 'import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["dependency-groups"]["dev"], sep="\n")' "$source/pyproject.toml" >"$requirements"
    fi
    pip_install "$environment" -e "${source}[host]" -r "$requirements"
}

install_program() {
    find_source
    find_python
    version=$(project_version)
    environment=$prefix/versions/$version
    say "hostd $version: $environment ($python)"
    run mkdir -p "$prefix/versions"
    make_environment "$environment"
    if [ -f "$source" ]; then
        pip_install "$environment" "hostd[host] @ file://$source"
        pip_install "$environment" --force-reinstall --no-deps "$source"
    else
        pip_install "$environment" "${source}[host]"
        pip_install "$environment" --force-reinstall --no-deps "$source"
    fi
    run "$environment/bin/python" -m compileall -q "$environment/lib" || true
    for name in hostd hostctl; do
        run "$environment/bin/$name" --version || die 5 "the installed $name does not start"
    done
    run ln -sfn "$environment" "$prefix/current"
    for name in hostd hostctl; do
        run ln -sfn "$prefix/current/bin/$name" "$LINK_DIR/$name"
    done
    if [ -f "$self" ]; then write_file "$prefix/install.sh" 755 <"$self"; fi
    write_file "$prefix/uninstall.sh" 755 <<SCRIPT
#!/bin/sh
# Removes what install.sh put on this machine. Options: --keep-data, --yes, --dry-run.
exec sh "$prefix/install.sh" --uninstall --prefix "$prefix" --data-dir "$data_dir" "\$@"
SCRIPT
}

# --- the service ---------------------------------------------------------------------------------

environment_lines() {
    echo "# Environment of the daemon: any HOSTD_ variable of docs/configuration.md. Written by install.sh."
    echo "HOSTD_DATA_DIR=$data_dir"
    for variable in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        eval "value=\${$variable-}"
        # shellcheck disable=SC2154  # set by eval
        [ -z "$value" ] || printf '%s=%s\n' "$variable" "$value"
    done
}

unit_text() {
    cat <<UNIT
[Unit]
Description=hostd: Python functions on your own machines
After=network-online.target
Wants=network-online.target

[Service]
# The daemon says when it answers (sd_notify).
Type=notify
TimeoutStartSec=120
ExecStart=$prefix/current/bin/hostd agent
EnvironmentFile=-$CONFIG_DIR/hostd.env
Restart=always
RestartSec=1
# Only the daemon itself: it decides what happens to containers and to hostd-fs.
KillMode=process
TimeoutStopSec=60
Delegate=yes
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
UNIT
}

install_service() {
    getent group "$GROUP" >/dev/null || run groupadd --system "$GROUP" || die 5 "the group $GROUP could not be made"
    environment_lines | write_file_keeping_changes "$CONFIG_DIR/hostd.env" 600
    if [ "$has_systemd" = 0 ]; then
        say "systemd does not run here; start the daemon with: HOSTD_DATA_DIR=$data_dir hostd agent"
        return 0
    fi
    unit_text | write_file "$UNIT" 644
    run systemctl daemon-reload
    [ "$start" = 1 ] || return 0
    run systemctl enable --quiet hostd.service
    run systemctl restart hostd.service || die 6 "the service did not start" "journalctl -u hostd.service -n 20"
    [ "$dry_run" = 1 ] || await_ready
}

# The administrator may have edited the file: it is written once.
write_file_keeping_changes() {
    if [ -f "$1" ]; then
        cat >/dev/null
    else
        write_file "$1" "$2"
    fi
}

await_ready() {
    waited=0
    until "$prefix/current/bin/hostctl" -q status >/dev/null 2>&1; do
        if [ "$waited" -ge "$READY_WAIT_S" ]; then
            journalctl -u hostd.service -n 20 --no-pager >&2 || true
            die 6 "the service did not answer within $READY_WAIT_S s" "journalctl -u hostd.service"
        fi
        sleep 1
        waited=$((waited + 1))
    done
    say "hostd runs; try: hostctl status"
}

# --- removal -------------------------------------------------------------------------------------

uninstall() {
    [ "$(id -u)" = 0 ] || [ "$dry_run" = 1 ] || die 3 "uninstalling needs root" "run this script as root"
    if [ "$keep_data" = 0 ] && [ -d "$data_dir" ]; then
        say "this removes $prefix and all data in $data_dir"
        consent
    fi
    if [ "$has_systemd" = 1 ] && [ -f "$UNIT" ]; then
        run systemctl disable --now --quiet hostd.service || warn "the service could not be stopped"
    fi
    sweep "$RUN_DIR"
    mounts_below "$data_dir"
    for name in hostd hostctl; do
        case $(readlink "$LINK_DIR/$name" 2>/dev/null || true) in
        "$prefix"/*) run rm -f "$LINK_DIR/$name" ;;
        esac
    done
    run rm -rf --one-file-system "$UNIT" "$CONFIG_DIR/hostd.env" "$prefix"
    [ ! -d "$CONFIG_DIR" ] || run rmdir "$CONFIG_DIR" 2>/dev/null || say "kept: $CONFIG_DIR (it has files of yours)"
    if [ "$keep_data" = 1 ]; then
        say "kept: $data_dir"
    else
        run rm -rf --one-file-system "$data_dir"
    fi
    if getent group "$GROUP" >/dev/null; then run groupdel "$GROUP" || warn "the group $GROUP stays"; fi
    [ "$has_systemd" = 0 ] || run systemctl daemon-reload
    say "hostd is removed; system packages stay"
}

# Ends what a daemon of a run directory left: processes by their control groups, mounts from the
# innermost out, the network. The names are those of hostd/runtime/naming.py.
sweep() {
    if [ -f "$1/lock" ] && have flock && ! flock -n "$1/lock" true; then
        die 3 "a daemon runs on $1" "stop it first"
    fi
    tag=$(printf '%s' "$1" | sha256sum | cut -c1-7)
    find /sys/fs/cgroup -type d -name "hostd-$tag" 2>/dev/null | while read -r top; do
        end_group "$top"
    done
    mounts_below "$1"
    if have ip && ip link show "hd-$tag" >/dev/null 2>&1; then
        run ip link delete "hd-$tag" || warn "the bridge hd-$tag could not be removed"
    fi
    if have nft && nft list table inet "hostd_$tag" >/dev/null 2>&1; then
        run nft delete table inet "hostd_$tag" || warn "the nft table hostd_$tag could not be removed"
    fi
    run rm -rf --one-file-system "$1"
}

# Kills every process of a control group and those below it, then removes them.
end_group() {
    say "control group: $1"
    [ "$dry_run" = 0 ] || return 0
    tries=0
    while [ -n "$(group_processes "$1")" ] && [ "$tries" -lt 50 ]; do
        group_processes "$1" | while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done
        sleep 0.1
        tries=$((tries + 1))
    done
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || warn "$1 could not be removed"
}
group_processes() { find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null; }

mounts_below() {
    awk -v top="$1/" 'index($5 "/", top) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r point; do
        run umount -l "$point" || warn "$point could not be unmounted"
    done
}

main() {
    self=$0
    prefix=/opt/hostd data_dir=/var/lib/hostd source='' python='' environment='' run_dir=''
    action=install start=1 keep_data=0 dry_run=0 yes=0 quiet=0
    parse "$@"
    case $action in
    usage) usage ;;
    packages)
        check_machine
        install_packages
        ;;
    develop)
        check_machine
        install_packages
        develop
        ;;
    sweep)
        check_directory "$run_dir"
        sweep "$run_dir"
        ;;
    uninstall)
        check_machine
        uninstall
        ;;
    install)
        check_machine
        [ "$(id -u)" = 0 ] || [ "$dry_run" = 1 ] || die 3 "installing needs root" "run this script as root"
        install_packages
        install_program
        install_service
        ;;
    esac
}

{ main "$@"; }
