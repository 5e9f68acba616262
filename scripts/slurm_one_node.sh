#!/usr/bin/env bash
# A Slurm cluster of this one machine, for trying `acdc sweep --launcher slurm` and for its tests, which start it
# themselves (make test ARGS='-m slurm'). As root, on Debian; it needs neither systemd nor cgroups, and leaves /etc and a
# Slurm that is already here alone.
#   scripts/slurm_one_node.sh start|stop|status
# SLURM_CONF=/tmp/acdc-slurm/slurm.conf makes sbatch, squeue and acdc use it; ACDC_SLURM=FOLDER puts it elsewhere.
# Partitions: low (the default), whose jobs are put back into the queue for those of high.
set -euo pipefail

folder=${ACDC_SLURM:-/tmp/acdc-slurm}
export SLURM_CONF=$folder/slurm.conf
cpus=4 # said to Slurm, however many there are: the tests count on them
control_port=16817
node_port=16818

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

install_packages() {
    command -v slurmctld slurmd munged >/dev/null && return
    apt-get update -q >"$folder/apt.log" 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge \
        >>"$folder/apt.log" 2>&1 || fail "slurm-wlm and munge could not be installed: see $folder/apt.log"
}

write_configuration() {
    local host
    host=$(hostname -s)
    if [[ ! -e $folder/munge.key ]]; then
        (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    fi
    cat >"$SLURM_CONF" <<END
ClusterName=acdc
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
# A job that is put back waits until its credentials have expired, two minutes unless told otherwise.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_min_interval=100000,bf_interval=2
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1
PartitionName=high Nodes=$host PriorityTier=2 PreemptMode=OFF
END
}

# Does the daemon of this folder run? Its number may have gone to another process since.
runs() {
    local pid
    pid=$(cat "$folder/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]
}

is_up() { runs munged && runs slurmctld && runs slurmd && [[ $(sinfo -h -o %T 2>/dev/null) =~ idle|mixed|allocated ]]; }

start() {
    [[ $(id -u) == 0 ]] || fail 'slurm_one_node.sh needs root: slurmd starts jobs as their users'
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    install_packages
    write_configuration
    runs munged || munged --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
    runs slurmctld || slurmctld
    runs slurmd || slurmd
    for _ in {1..100}; do
        if is_up; then
            echo "Slurm is up; use it with: export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.3
    done
    tail -n 5 "$folder"/*.log >&2
    fail "Slurm did not come up within 30 s: its logs are in $folder"
}

stop() {
    local daemon
    runs slurmctld && scancel --quiet --user root --signal KILL || true
    for daemon in slurmd slurmctld munged; do
        runs "$daemon" && kill "$(cat "$folder/$daemon.pid")"
        for _ in {1..100}; do
            runs "$daemon" || break
            sleep 0.1
        done
        ! runs "$daemon" || fail "$daemon did not end: see $folder/$daemon.log"
    done
    rm -rf "$folder"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) is_up && echo up || { echo down; exit 1; } ;;
    *) fail 'usage: scripts/slurm_one_node.sh start|stop|status' ;;
esac
