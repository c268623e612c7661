#!/usr/bin/env bash
# up.sh DIR [CPUS=8]: a real SLURM cluster on loopback, all state in DIR. Idempotent. Needs root and the packages
# slurmctld, slurmd, slurm-client, munge. Afterwards: source DIR/env (sets SLURM_CONF).
# Nodes: n1 n2 for ordinary jobs (main), n3 n4 where `high` pushes out `low` and `grace`, n5 n6 to be broken (fragile).
set -euo pipefail
D=$(mkdir -p "${1:?usage: up.sh DIR [CPUS]}" && cd "$1" && pwd)
NODES=6 CPUS=${2:-8} MEM=$(awk '/MemTotal/{print int($2/1024*.9)}' /proc/meminfo)
[ "$(id -u)" = 0 ] || { echo "up.sh: must be root" >&2; exit 1; }

cd "$D"
mkdir -p "$D"/{etc,log,run,state,spool,munge}; chmod 711 "$D/munge"
alive() { # alive NAME COMM: running and no zombie
  local p; p=$(cat "$D/run/$1.pid" 2>/dev/null) && [ -n "$p" ] && [ "$(cat /proc/$p/comm 2>/dev/null)" = "$2" ] &&
    grep -q '^State:[[:space:]][^Z]' "/proc/$p/status" 2>/dev/null
}
start() { # start NAME COMM CMD...: run CMD detached, remember its pid
  local n=$1 c=$2; shift 2
  alive "$n" "$c" && return 0
  setsid "$@" </dev/null >>"$D/log/$n.out" 2>&1 & echo $! >"$D/run/$n.pid"
}

# a base port whose NODES+1 ports are free, kept in DIR/port so that a second up.sh finds the same cluster
free() { local p; for ((p=$1; p<=$1+NODES; p++)); do ! (exec 3<>/dev/tcp/127.0.0.1/$p) 2>/dev/null || return 1; done; }
if ! alive slurmctld slurmctld || [ ! -s "$D/port" ]; then
  PORT=${SLURM_TEST_PORT:-16800}; until free "$PORT"; do PORT=$((PORT+100)); done; echo "$PORT" >"$D/port"
fi
PORT=$(cat "$D/port")

[ -s "$D/munge/key" ] || (umask 077; head -c 1024 /dev/urandom >"$D/munge/key")
names=$(seq -f 'n%g' 1 "$NODES")
{ echo "127.0.0.1 localhost $(hostname)"; for n in $names; do echo "127.0.0.1 $n"; done; grep -v '^127\.0\.0\.1' /etc/hosts || :; } >"$D/etc/hosts.new"
cmp -s "$D/etc/hosts.new" "$D/etc/hosts" || cp "$D/etc/hosts.new" "$D/etc/hosts" # bound into the nodes: the same inode
# renamed into place: commands may read it while a second up.sh runs
cat >"$D/etc/slurm.conf.new" <<C
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits this long + 1 s before it may start again (default 120, least 5)
AuthInfo=socket=$D/munge/sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.self.pid
SlurmdPidFile=$D/run/slurmd.%n.self.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
MaxArraySize=1001
$(i=0; for n in $names; do i=$((i+1)); echo "NodeName=$n NodeHostname=$n NodeAddr=127.0.0.1 Port=$((PORT+i)) CPUs=$CPUS RealMemory=$MEM State=UNKNOWN"; done)
PartitionName=main    Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=low     Nodes=n[3-4] PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=grace   Nodes=n[3-4] PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high    Nodes=n[3-4] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=fragile Nodes=n[5-6] PriorityTier=1 PreemptMode=OFF MaxTime=INFINITE State=UP
C
mv "$D/etc/slurm.conf.new" "$D/etc/slurm.conf"
# 22.05 loads a cgroup plugin even when nothing uses it and knows no "disabled": v1 touches nothing by itself
printf 'CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\n' >"$D/etc/cgroup.conf.new"
mv "$D/etc/cgroup.conf.new" "$D/etc/cgroup.conf"
printf 'export SLURM_CONF=%q\n' "$D/etc/slurm.conf" >"$D/env"; . "$D/env"

start munged munged munged --foreground --force --key-file="$D/munge/key" --socket="$D/munge/sock" \
  --pid-file="$D/munge/pid" --log-file="$D/munge/log" --seed-file="$D/munge/seed"
for _ in $(seq 100); do [ -S "$D/munge/sock" ] && munge -n -S "$D/munge/sock" 2>/dev/null | unmunge -S "$D/munge/sock" >/dev/null 2>&1 && break; sleep .1; done
start slurmctld slurmctld slurmctld -D -f "$SLURM_CONF"
for n in $names; do
  # own UTS + mount namespace: `hostname` says n1, and n1, n2, ... resolve, without touching the machine's /etc/hosts
  start "slurmd.$n" slurmd unshare --uts --mount --propagation private sh -c \
    "hostname $n; mount --bind '$D/etc/hosts' /etc/hosts; exec slurmd -D -f '$SLURM_CONF' -N $n"
done
for _ in $(seq 300); do
  [ "$(sinfo -h -N -o '%N %T' 2>/dev/null | sort -u | grep -cE ' (idle|mixed|allocated|completing)$')" = "$NODES" ] && exit 0
  grep -q '^State:[[:space:]][^Z]' "/proc/$(cat "$D/run/slurmctld.pid")/status" 2>/dev/null || break
  sleep .1
done
echo "up.sh: nodes not idle after 30 s; logs in $D/log" >&2; sinfo -N -l >&2 || :; grep -hE 'error|fatal' "$D"/log/*.log | grep -viE 'pmix|state file|state save file' | tail -n 20 >&2 || :; exit 1
