#!/usr/bin/env bash
# A one-node Slurm cluster on this machine, for tests. It needs root and Debian's apt-get, but neither
# systemd nor cgroups, and keeps everything (configuration, keys, database, logs) in one folder:
# $SLURM_TEST_DIR (an absolute path that every user can reach), or /tmp/attnconv-slurm.
#
#   cluster.sh start   install what is missing, start the daemons, wait until jobs can run, and print one
#                      line for the shell: export SLURM_CONF=...   Does nothing to a cluster that is up.
#   cluster.sh stop    cancel its jobs, stop its daemons and remove its folder.
#
# Exit codes: 0 done; 1 something did not start (the reason and the log that shows it are on stderr);
# 77 skipped, because a cluster cannot run on this machine.
#
# The node always claims 8 CPUs. Partition `debug` is the default one. A job in `urgent`
# that needs its CPUs preempts it: SIGTERM to its srun steps, GraceTime later SIGTERM to all of it,
# KillWait later SIGKILL, and it is requeued.
set -euo pipefail

dir=${SLURM_TEST_DIR:-/tmp/attnconv-slurm}
mark=$dir/.attnconv-slurm  # makes sure that a mistyped SLURM_TEST_DIR is not removed
kill_wait=10
export SLURM_CONF=$dir/slurm.conf
export MYSQL_UNIX_PORT=$dir/mariadb.sock  # slurmdbd has no setting for the socket; its library reads this
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "cluster.sh: $*" >&2; }

fail() {  # REASON LOG; the log stays in the folder until the next start
    say "$1"
    tail -n 20 "$dir/$2.log" >&2 || true
    stop_daemons
    exit 1
}

wait_for() {  # SECONDS COMMAND...
    local deadline=$((SECONDS + $1)) output
    shift
    until output=$("$@" 2>&1); do
        ((SECONDS < deadline)) || { echo "$output" >&2; return 1; }
        sleep 0.2
    done
}

pid_of() { cat "$dir/$1.pid" "$dir/munge/$1.pid" 2>/dev/null || true; }

# Also checks the name, because a PID from an old file may be another process by now; ignores zombies.
running() { [[ $(cat "/proc/$1/stat" 2>/dev/null) == "$1 ($2) "[^ZX]* ]]; }  # PID DAEMON

ended() { ! running "$@"; }

all_up() {
    local daemon
    for daemon in munged mariadbd slurmdbd slurmctld slurmd; do
        running "$(pid_of "$daemon")" "$daemon" || return 1
    done
}

node_is_idle() { [[ $(sinfo --noheader --format=%T --partition=debug) == idle ]]; }

no_jobs() {  # cancels again each time: a job's own SIGTERM handler may have requeued it
    scancel --user=root
    [[ -z $(squeue --noheader) ]]
}

stop_daemons() {
    local daemon pid
    for daemon in slurmd slurmctld slurmdbd mariadbd munged; do
        pid=$(pid_of "$daemon")
        running "$pid" "$daemon" || continue
        kill "$pid"
        wait_for 20 ended "$pid" "$daemon" || kill -KILL "$pid"
    done
}

remove_cluster() {
    [[ -e $dir ]] || return 0
    [[ -e $mark ]] || { say "$dir exists and is not a cluster of this script"; exit 1; }
    if all_up; then  # Slurm's daemons leave running jobs alone when they stop, so the jobs go first
        wait_for $((kill_wait + 20)) no_jobs || say 'some jobs did not end'
    else
        say 'found a cluster that is not whole: a job that it ran may still be running'
    fi
    stop_daemons
    rm -rf "$dir"
}

install_missing() {
    local command
    for command in munged mariadbd mariadb-install-db my_print_defaults slurmdbd slurmctld slurmd sbatch; do
        command -v "$command" >/dev/null && continue
        say "$command is missing: installing Slurm, munge and MariaDB"
        # MariaDB's core packages do not start a service of their own.
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core; } \
            >"$dir/apt-get.log" 2>&1 </dev/null || fail 'apt-get could not install the packages' apt-get
        return
    done
}

write_configuration() {
    local host
    host=$(hostname -s)
    # Times are cut where Slurm's own would make a test wait: cred_expire is also how long a requeued job
    # is held back (120 s), sched_interval how late the scheduler may then notice it (60 s).
    cat >"$dir/slurm.conf" <<-CONF
		ClusterName=attnconv
		SlurmctldHost=$host(127.0.0.1)
		SlurmctldPort=26817
		SlurmdPort=26818
		SlurmUser=root
		AuthInfo=socket=$dir/munge/socket,cred_expire=5
		StateSaveLocation=$dir/state
		SlurmdSpoolDir=$dir/spool
		SlurmctldPidFile=$dir/slurmctld.pid
		SlurmdPidFile=$dir/slurmd.pid
		SlurmctldLogFile=$dir/slurmctld.log
		SlurmdLogFile=$dir/slurmd.log
		AccountingStorageType=accounting_storage/slurmdbd
		AccountingStorageHost=127.0.0.1
		AccountingStoragePort=26819
		AccountingStoragePass=$dir/munge/socket
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_CPU
		SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
		ReturnToService=2
		JobRequeue=1
		OverTimeLimit=0
		KillWait=$kill_wait
		PreemptType=preempt/partition_prio
		PreemptMode=REQUEUE
		SlurmdParameters=config_overrides
		NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000
		PartitionName=debug Nodes=$host Default=YES MaxTime=60 PriorityTier=1 GraceTime=20
		PartitionName=urgent Nodes=$host MaxTime=60 PriorityTier=10
	CONF
    cat >"$dir/slurmdbd.conf" <<-CONF
		AuthType=auth/munge
		AuthInfo=socket=$dir/munge/socket
		DbdHost=localhost
		DbdPort=26819
		SlurmUser=root
		LogFile=$dir/slurmdbd.log
		PidFile=$dir/slurmdbd.pid
		StorageType=accounting_storage/mysql
		StorageHost=localhost
		StorageUser=root
	CONF
    chmod 600 "$dir/slurmdbd.conf"  # slurmdbd requires it
    echo 'CgroupAutomount=no' >"$dir/cgroup.conf"
}

start_munged() {
    local munge=$dir/munge
    install -d -o munge -g munge "$munge"
    runuser -u munge -- sh -c "umask 077; head -c 128 /dev/urandom >'$munge/key'"
    runuser -u munge -- munged --socket="$munge/socket" --key-file="$munge/key" --seed-file="$munge/seed" \
        --pid-file="$munge/munged.pid" --log-file="$munge/munged.log" >"$dir/munged.log" 2>&1 ||
        fail 'munged did not start' munged
}

start_mariadbd() {  # without a TCP port: root connects through the socket and needs no password
    mariadb-install-db --no-defaults --user=root --datadir="$dir/mariadb" --skip-test-db \
        --auth-root-authentication-method=socket >"$dir/mariadbd.log" 2>&1 ||
        fail 'the database could not be made' mariadbd
    setsid mariadbd --no-defaults --user=root --datadir="$dir/mariadb" --socket="$MYSQL_UNIX_PORT" \
        --pid-file="$dir/mariadbd.pid" --skip-networking >>"$dir/mariadbd.log" 2>&1 </dev/null &
    wait_for 60 test -S "$MYSQL_UNIX_PORT" || fail 'mariadbd did not come up in 60 s' mariadbd
}

start_slurm() {  # DAEMON COMMAND...: the command succeeds once the daemon is up
    local daemon=$1
    shift
    "$daemon" >>"$dir/$daemon.log" 2>&1 || fail "$daemon did not start" "$daemon"
    wait_for 60 "$@" || fail "$daemon was not up in 60 s: \`$*\` fails" "$daemon"
}

start() {
    if ! all_up; then
        remove_cluster
        mkdir -p "$dir"
        touch "$mark"
        install_missing
        write_configuration
        start_munged
        start_mariadbd
        start_slurm slurmdbd sacctmgr -i add cluster attnconv
        start_slurm slurmctld scontrol ping
        start_slurm slurmd node_is_idle
        wait_for 60 sacct || fail 'sacct does not work' slurmdbd
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
}

# Two starts at once would fight over the folder and the ports. The daemons must not inherit the lock.
take_turns() { [[ -n ${CLUSTER_TURN-} ]] || CLUSTER_TURN=mine exec flock --close "$0" bash "$0" "$@"; }

case ${1-} in
    start)
        [[ $EUID == 0 ]] || { say 'skipped: it needs root'; exit 77; }
        command -v apt-get >/dev/null || { say 'skipped: this machine has no apt-get'; exit 77; }
        take_turns start
        start ;;
    stop)
        [[ -e $dir ]] || exit 0
        take_turns stop
        remove_cluster ;;
    *) say 'usage: cluster.sh start|stop'; exit 2 ;;
esac
